"""The part of a plan's report that moves: sliders whose counts and estimates the reader's browser finds, offline."""

import json
from html import escape
from pathlib import Path

import numpy as np

from upvit_core.figures.browser import text_of
from upvit_core.figures.theme import COLOURS, TITLES
from upvit_core.mapping.points import Worth, removed
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.mapping.table import estimate_table
from upvit_core.planning.live_counts import live_counts, widths_at
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf, head_options
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of
from upvit_core.report.page import Page

MOST_ESTIMATES = 40_000
STYLE = """<style>
.moving { background: #f4f5f7; border-radius: 8px; padding: 0.8rem 1rem; }
.moving label { display: block; margin: 0.55rem 0 0; border-left: 5px solid var(--own); padding-left: 0.6rem; }
.moving label span { display: flex; justify-content: space-between; gap: 0.6rem; flex-wrap: wrap; }
.moving input { width: 100%; height: 1.9rem; margin: 0; accent-color: color-mix(in srgb, var(--own) 80%, black); }
.moving .values { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.6rem 1rem; }
.moving .values b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.moving .values small { display: block; color: #59616b; min-height: 2.6em; }
</style>"""


def add_moving(page: Page, plan: PruningPlan, scores: ImportanceScores | None, surrogate: Surrogate | None) -> None:
    """Sliders of equal shares that start at the plan, or nearest to one whose blocks differ. `surrogate` is of these
    scores."""
    shape, options = plan.shape_before, head_options(plan.shape_before)
    asked = WhatIf.from_request(plan.requested, basis=plan.basis, repair=False)
    kept = {group.key: len(plan.kept(group.key)) for group in shape.groups}
    heads = (asked and asked.heads) or (options[-1] if options else None)
    start = {c: round(asked.percents[c]) for c in shape.components if c in asked.percents} if asked else {}
    even = bool(start) and widths_at(shape, heads, start) == kept
    if not even:
        start = {c: min(round(100 * share), MAX_REMOVED_PERCENT) for c, share in removed(kept, shape).items()}
        mean = sum(block.attention.heads for block in plan.blocks) / len(plan.blocks)
        heads = min(options, key=lambda count: abs(count - mean), default=None)
    if scores is None or surrogate is None or surrogate.record.basis != plan.basis:
        surrogate = None
    task = task_of(shape)
    counts = options or (None,)
    step = (
        1
        if surrogate is None
        else next(s for s in (5, 10, 20) if (100 // s) ** len(start) * len(counts) < MOST_ESTIMATES)
    )
    percents = {c: sorted({*range(0, MAX_REMOVED_PERCENT, step), MAX_REMOVED_PERCENT, own}) for c, own in start.items()}
    tables, cuts, of = {}, "", ""
    if scores is not None and surrogate is not None:
        record = surrogate.record
        cuts = f"estimated from {len(record.cuts)} measured cuts"
        of = f" Estimates are of models cut so{', and repaired' * record.repair}, before any training."
        worth = Worth(scores, plan.basis)
        for count in counts:
            found = estimate_table(surrogate, worth, shape, count, percents)
            columns = {"values": found.value, "low": found.value_low, "high": found.value_high}
            tables[str(count or 0)] = {name: np.round(column, 5).tolist() for name, column in columns.items()}
    data = {
        "model": live_counts(shape),
        "percents": percents,
        "heads": [count or 0 for count in counts],
        "tables": tables,
        "cuts": cuts,
        "task": {"sign": task.sign, "digits": task.digits},
    }
    values = "".join(
        f'<div>{escape(title)}<b data-at="{name}"></b><small data-at="{name}-note"></small></div>'
        for name, title in (("params", "Parameters"), ("macs", f"MACs, one {task.batch_item}"), ("value", task.name))
    )
    controls = "".join(
        _control(c, f"{TITLES[c]} removed", COLOURS[c], len(own), own.index(start[c])) for c, own in percents.items()
    )
    if heads is not None and len(options) > 1:
        controls += _control("heads", "Heads", COLOURS["attention"], len(options), options.index(heads))
    script = f"{text_of('counts.js')}{Path(__file__).with_name('moving.js').read_text(encoding='utf-8')}"
    content = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    page.heading("Another size")
    page.part(
        f'{STYLE}<div class="moving screen"><div class="values" aria-live="polite">{values}</div>{controls}</div>'
        f"<script>(() => {{\nconst data = {content};\n{script}}})();</script>"
    )
    near = "" if even else " This plan is not one of equal shares; the sliders start nearest to it."
    page.note(f"Counts are exact, for {plan.basis} removed in equal shares from all blocks.{near}{of}")


def _control(name: str, title: str, colour: str, count: int, at: int) -> str:
    return (
        f'<label style="--own: {colour}"><span>{title}<output data-at="{name}"></output></span>'
        f'<input type="range" name="{name}" min="0" max="{count - 1}" value="{at}"></label>'
    )
