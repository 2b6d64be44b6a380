"""Share of the total score that the best channels hold, block by block, with the current cut."""

import numpy as np

from upvit_core.figures.score_grid import kept_mask, member_word
from upvit_core.figures.theme import COLOURS, TITLES, Chart, Spec, Theme, axis, drawn, lines, markers, note
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

POINTS = 120


def share_kept(values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Share of channels kept and share of their total score, both in [0, 1], best channels first.

    Scores below 0, which differences of rounding can give, count as 0.
    """
    ranked = np.sort(np.maximum(values, 0))[::-1]
    total = np.concatenate([[0.0], np.cumsum(ranked)])
    at = np.unique(np.linspace(0, len(values), min(points, len(values) + 1)).round().astype(int))
    return at / len(values), total[at] / total[-1] if total[-1] > 0 else at / len(values)


def plan_share(scores: ImportanceScores, plan: PruningPlan, component: Component, block: int) -> tuple[float, float]:
    """Share of channels that a plan keeps of one block, and share of the score with them."""
    values = np.maximum(scores.values[scores.shape.key_of(component, block)], 0)
    kept = kept_mask(plan, scores, component, block)
    return float(kept.mean()), float(values[kept].sum() / values.sum()) if values.sum() else float(kept.mean())


def kept_curve(
    scores: ImportanceScores,
    component: Component,
    plan: PruningPlan | None,
    theme: Theme,
    *,
    block: int | None = None,
    height: int = 250,
) -> Chart:
    """Curves of every block (or of one, the others pale), the cut, and where the plan's own choice lies."""
    blocks = [group.place for group in scores.shape.groups_of(component)]
    word = "stage" if component == "residual" else "block"
    colour, ours = COLOURS[component], f"{member_word(scores, component)}s"
    traces: list[Spec] = []
    for b in blocks:
        key = scores.shape.key_of(component, b)
        x, y = share_kept(scores.values[key])
        firm = b == block or len(blocks) == 1
        name = "all blocks" if key == "residual" else f"{word} {b}"
        best = f"the best %{{x:.0f}} % of {ours} hold %{{y:.1f}} % of the score"
        curve = lines((100 * x).astype(np.float32), (100 * y).astype(np.float32), colour, 2.5 if firm else 1.3)
        opacity = 0.15 if block not in (None, b) else 1.0 if firm else 0.55
        traces.append({**curve, "opacity": opacity, "hovertemplate": f"{name}: {best}<extra></extra>"})
    alt = f"{TITLES[component]}: share of the total score kept against share of {ours} kept, {len(blocks)} curves."
    layout: Spec = {"annotations": []}
    if plan is not None:
        inside = [b for b in blocks if block is None or b == block]
        points = [plan_share(scores, plan, component, b) for b in inside]
        at = 100 * float(np.mean([x for x, _ in points]))
        held = [100 * y for _, y in points]
        traces.append(lines([at, at], [0, 100], theme.text, 2, dash="dash", hoverinfo="skip"))
        rings = {"size": 8, "color": theme.surface, "line": {"color": colour, "width": 2}}
        template = f"this plan, %{{text}}: %{{x:.0f}} % of {ours}, %{{y:.1f}} % of the score<extra></extra>"
        names = [f"{word} {b}" for b in inside]
        traces.append(markers([100 * x for x, _ in points], held, rings, text=names, hovertemplate=template))
        low, high = min(held), max(held)
        words = f"{low:.0f} %" if high - low < 1 else f"{low:.0f} – {high:.0f} %"
        text = f"{at:.0f} % of {ours}<br>hold <b>{words}</b>"
        corner: Spec = {"xanchor": "right", "align": "right", "bgcolor": theme.surface}
        # No curve comes below the diagonal, so this corner is free at every width.
        layout["annotations"].append(note(text, 100, 12, theme.text, **corner))
        alt += f" At the cut, {at:.0f} % of {ours} hold {words} of the score."
    layout["xaxis"] = axis(theme, f"{ours} kept, %", range=[0, 101], dtick=25)
    layout["yaxis"] = axis(theme, "score kept, %", range=[0, 103], dtick=25)
    figure = drawn(traces, layout, theme, height=height, margin=(52, 12, 10, 46))
    return Chart(
        figure, f"{TITLES[component]}: what the best {ours} hold", alt, lambda: _table(scores, component, blocks)
    )


def _table(scores: ImportanceScores, component: Component, blocks: list[int]) -> dict[str, np.ndarray]:
    rows = []
    for b in blocks:
        key = scores.shape.key_of(component, b)
        x, y = share_kept(scores.values[key], len(scores.values[key]) + 1)
        rows.append(np.stack([np.full(len(x), -1 if key == "residual" else b), x, y]))
    block, x, y = np.concatenate(rows, axis=1)
    return {"block": block.astype(int), "share_of_channels": x, "share_of_score": y}
