"""The report of a plan: what stays, its costs and measurements, its origin, and the commands that remake it."""

from collections.abc import Sequence
from dataclasses import dataclass

from upvit_core import units
from upvit_core.figures.diagram_primitives import in_channels
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import draw_kept_strips
from upvit_core.figures.model_diagram import draw_model
from upvit_core.figures.theme import LIGHT
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.planning.curves import share_removed
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of
from upvit_core.report.moving import add_moving
from upvit_core.report.page import Page
from upvit_core.report.provenance import of_machine, of_plan
from upvit_core.runs.commands import command


@dataclass(frozen=True)
class Measurement:
    """One value that was measured or estimated, with what it was measured on in `how`."""

    name: str
    value: str
    how: str


def counted(plan: PruningPlan) -> list[tuple[str, str]]:
    """Parameters and MACs before and after, exactly."""
    before, after = plan.shape_before, plan.shape_after
    rows = []
    for name, count in (
        ("Parameters, counted", count_parameters),
        (f"MACs of one {task_of(before).batch_item}, counted", count_macs),
    ):
        was, now = count(before), count(after)
        rows.append((name, f"{now:,} of {was:,}: {was / now:.2f} times fewer"))
    return rows


def widths(plan: PruningPlan) -> list[tuple[str, str]]:
    """The widths that stay, in words."""
    before, after = plan.shape_before, plan.shape_after
    rows = [("Residual", f"{after.embed_dim} of {before.embed_dim} {plan.basis}")]
    blocks = list(after.blocks)
    alike = len(set(blocks)) == 1
    for number in range(1 if alike else after.depth):
        own, source = in_channels(after, number), in_channels(before, plan.blocks[number].source)
        name = f"Each of {len(blocks)} blocks" if alike else f"Block {number}"
        rows.append(
            (
                name,
                f"{own.num_heads} of {source.num_heads} heads, {own.attention} of {source.attention} attention "
                f"channels, {own.ffn:,} of {source.ffn:,} FFN channels",
            )
        )
    return rows


def default_commands(plan: PruningPlan, model: str, data: str) -> str:
    """Command lines that cut by the plan that the report carries."""
    model, data = model or "MODEL", data or "IMAGES"
    cut = command("prune", model, "plan.json", data=data if plan.basis == "directions" else "", out="student")
    return f"{cut}\n{command('evaluate', 'student', data=data, teacher=model)}"


def add_plan(page: Page, plan: PruningPlan, scores: ImportanceScores | None) -> None:
    """The drawing, and over scores the strips and the heads of the first block."""
    page.chart(draw_model(plan.shape_before, LIGHT, plan.shape_after))
    if scores is None or scores.basis != plan.basis:
        return
    page.chart(draw_kept_strips(scores, plan, LIGHT))
    if plan.blocks[0].attention.heads != plan.shape_before.blocks[plan.blocks[0].source].num_heads:
        page.chart(draw_head_merging(scores, plan, plan.blocks[0].source, LIGHT))


def plan_report(
    plan: PruningPlan,
    scores: ImportanceScores | None = None,
    *,
    name: str = "",
    measured: Sequence[Measurement] = (),
    commands: str = "",
    model: str = "",
    data: str = "",
    surrogate: Surrogate | None = None,
) -> str:
    """The HTML. `scores` are those of the plan's model, in its basis, for the pictures of what stays.

    `measured`: values with their conditions. `commands` remake the plan; by default they cut by the
    plan.json inside the report. `surrogate`: estimates by a map of these scores.
    """
    before = plan.shape_before
    page = Page(f"Pruning plan: {name or before.name}", f"{plan.model or before.name}, cut by plan {plan.digest}")
    page.heading("Numbers")
    rows = counted(plan)
    if scores is not None and scores.basis == plan.basis:
        rows.append(
            ("Share of the score removed, which does not tell accuracy", units.share(share_removed(scores, plan)))
        )
    page.pairs([*rows, *((m.name, f"{m.value} · {m.how}") for m in measured)])
    add_moving(page, plan, scores, surrogate)
    page.heading("What stays")
    page.pairs(widths(plan))
    add_plan(page, plan, scores)
    page.heading("Where it comes from")
    page.pairs([*of_plan(plan, scores), *of_machine()])
    page.heading("To make it again")
    page.code(commands or default_commands(plan, model, data))
    page.attach("plan.json", "application/json", plan.to_json(), "plan.json, the plan itself")
    return page.html()
