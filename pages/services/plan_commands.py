"""A plan as command lines: score, plan, prune and distil on a machine without a browser, as the page would."""

from dataclasses import replace

from pages.services import block_removals, evaluation, open_model, recipes, scoring
from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.planning.widths import widths_of, write_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import NAMES
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.source import Source
from upvit_core.runs.commands import command

SCORES = "scores.safetensors"


def commands(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> str:
    """Command lines that do the same on a machine without a browser."""
    source = Source.parse(model.model or "MODEL")
    name = source.path
    if model.is_elastic:
        return command("slice", name, **(_widths(scores, what_if, plan) | {"heads": None}), out="student")
    data = model.dataset if model.has_weights else ""
    shared: dict[str, object] = {**source.flags, "data": data or "IMAGES"}
    is_rotated = plan.basis == "directions"
    basis = plan.basis if is_rotated else None
    lines = [_score(model, scores, name, is_rotated, shared)]
    chosen = _widths(scores, what_if, plan)
    if (depth := plan.shape_after.depth) < plan.shape_before.depth:
        record = block_removals.records().of_model(plan.model_digest)
        count = record.images if record is not None else 2000
        order = plan.requested.get("order")
        blocks: dict[str, object] = {"depth": depth, "images": count, "out": "blocks.json"}
        if order == "width first":
            lines.append(command("plan", SCORES, **chosen, basis=basis, out="widths.json"))
            blocks["after"] = "widths.json"
        removal = command("score-blocks", name, **shared, **blocks)
        kept: dict[str, object] = {"depth": depth, "depth_scores": "blocks.json"}
        if order == "depth first":
            again = command("score", name, **shared, **kept, criterion="fisher", images=count, out=SCORES)
            lines = [removal, again]
        else:
            lines.append(removal)
        chosen |= kept
    training = recipes.requested_training(model)
    cut = {**shared, "data": shared["data"] if what_if.repair or is_rotated else None, "repair": what_if.repair}
    lines += [
        command("plan", SCORES, **chosen, basis=basis, out="plan.json"),
        command("prune", name, "plan.json", **cut, out="student"),
        command(
            "distill",
            teacher=name,
            student="student",
            **shared,
            epochs=training.epochs,
            preset=training.preset(model, what_if),
            feature_weight=training.feature_weight or None,
            workers=training.workers,
            compile=training.compile,
            out="runs",
        ),
    ]
    return "\n".join(lines)


def _widths(scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> dict[str, object]:
    """Options of `plan` for its widths; blocks are left out by --depth, so the widths are those with all of them."""
    before = plan.shape_before
    if before.one_share:
        return {name: plan.requested.get(name) for name in NAMES} | {"snap": True}
    if plan.shape_after.depth < before.depth:
        plan = replace(what_if, depth=None).plan(scores or open_model.no_scores(before))
    after = plan.shape_after
    if not after.is_uniform and len(set(after.blocks)) > 1:
        return {"widths": write_widths(widths_of(after))}
    first, last = before.blocks[0], after.blocks[0]
    return {
        "residual": 1 - after.embed_dim / before.embed_dim,
        "attention": 1 - last.attention / first.attention,
        "ffn": 1 - last.ffn / first.ffn,
        "heads": what_if.heads,
    }


def _score(
    model: OpenModel, scores: ImportanceScores | None, name: str, is_rotated: bool, shared: dict[str, object]
) -> str:
    """The line that makes the scores of the plan."""
    if is_rotated and (scores is None or scores.basis == "directions" or scoring.can_find_directions(model)):
        count = scores.images if scores is not None and scores.basis == "directions" else evaluation.CALIBRATION_IMAGES
        return command("score", name, **shared, basis="directions", images=count, seed=0, out=SCORES)
    if model.source.startswith(open_model.PUBLISHED):
        return command("import-scores", model.source.removeprefix(open_model.PUBLISHED), out=SCORES)
    criterion = scores.criterion if scores is not None and scores.criterion in scoring.LABELS else "fisher"
    images, seed = (scores.images, scores.seed) if scores is not None and scores.images else (2000, 0)
    return command("score", name, **shared, criterion=criterion, images=images, seed=seed, out=SCORES)
