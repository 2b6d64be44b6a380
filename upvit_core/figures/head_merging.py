"""Merging heads: h_b heads flow into h_t, each band as wide as its channels, coloured by the score they carry."""

from __future__ import annotations

import numpy as np

from upvit_core.figures.score_grid import heads_after, kept_mask, member_word
from upvit_core.figures.theme import COLOURS, Chart, Spec, Theme, drawn, log_ticks
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")


def cividis(share: float) -> str:
    """The colour at `share` of the scale, in [0, 1]."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    a, b = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in CIVIDIS[low : low + 2])
    mixed = (a + (b - a) * (at - low)).round().astype(int)
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def counted(heads: int) -> str:
    return f"{heads} head{'s' if heads != 1 else ''}"


def draw_head_merging(
    scores: ImportanceScores, plan: PruningPlan, block: int, theme: Theme, *, height: int = 330, step: int = 3
) -> Chart:
    """Heads of one block before (left), merged (middle), and after the least important channels are gone (right).

    `step` shows the picture up to a moment: 1 heads as they are, 2 merged, 3 cut.
    """
    values = np.maximum(scores.attention(block), 1e-12)
    before, now = scores.shape.blocks[block].num_heads, heads_after(plan, scores, block)
    kept = kept_mask(plan, scores, "attention", block)
    width, per, ratio = len(values), len(values) // before, before // now
    head_score = values.reshape(before, per).sum(1)
    merged_score = values.reshape(now, -1).sum(1)
    merged_kept = np.where(kept, values, 0).reshape(now, -1).sum(1)
    logs = np.log10(np.concatenate([head_score, merged_score]))
    low, high = float(logs.min()), float(max(logs.max(), logs.min() + 0.3))

    def colour(score: float) -> str:
        return cividis((np.log10(max(score, 1e-12)) - low) / (high - low))

    ours = f"{member_word(scores, 'attention')}s"
    short = "dir." if scores.basis == Basis.DIRECTIONS else "ch"
    gap = 0.012
    tall = (1 - gap * (before - 1)) / width  # height of one channel
    tops_before = [1 - head * (per * tall + gap) for head in range(before)]
    middle_gap = gap * (before - 1) / max(now - 1, 1) if now > 1 else 0.0
    tops_merged = [
        1 - t * (width // now * tall + middle_gap) - (0 if now > 1 else gap * (before - 1) / 2) for t in range(now)
    ]
    shapes: list[Spec] = []
    hover: dict[str, list[object]] = {"x": [], "y": [], "text": []}

    def band(
        x0: float, x1: float, left: tuple[float, float], right: tuple[float, float], fill: str, opacity: float
    ) -> None:
        bend = (x0 + x1) / 2
        path = (
            f"M {x0},{left[0]:.5f} C {bend},{left[0]:.5f} {bend},{right[0]:.5f} {x1},{right[0]:.5f} L "
            f"{x1},{right[1]:.5f} "
            f"C {bend},{right[1]:.5f} {bend},{left[1]:.5f} {x0},{left[1]:.5f} Z"
        )
        shapes.append({"type": "path", "path": path, "fillcolor": fill, "opacity": opacity, "line": {"width": 0}})

    def bar(x0: float, x1: float, top: float, bottom: float, fill: str, *, hollow: bool = False) -> None:
        line = {"color": COLOURS["attention"], "width": 1.5, "dash": "dot"} if hollow else {"width": 0}
        shapes.append({"type": "rect", "x0": x0, "x1": x1, "y0": bottom, "y1": top, "fillcolor": fill, "line": line})

    annotations: list[Spec] = []
    wrapped = "<br>" if now <= 6 else " · "

    def label(x: float, y: float, text: str, anchor: str = "center", size: int = 13) -> None:
        annotations.append(
            {
                "x": x,
                "y": y,
                "text": text,
                "showarrow": False,
                "xanchor": anchor,
                "font": {"size": size, "color": theme.text},
            }
        )

    for head in range(before):
        top, bottom = tops_before[head], tops_before[head] - per * tall
        bar(0.06, 0.16, top, bottom, colour(head_score[head]))
        label(0.05, (top + bottom) / 2, f"{head}", "right")
        _point(hover, 0.11, (top + bottom) / 2, f"head {head}: {per} {ours}, score {head_score[head]:.3g} nats")
        if step >= 2:
            target, place = divmod(head, ratio)
            right_top = tops_merged[target] - place * per * tall
            band(0.16, 0.44, (top, bottom), (right_top, right_top - per * tall), colour(head_score[head]), 0.55)
    if step >= 2:
        for target in range(now):
            top, bottom = tops_merged[target], tops_merged[target] - width // now * tall
            bar(0.44, 0.54, top, bottom, colour(merged_score[target]))
            text = f"merged head {target}: {width // now} {ours}, score {merged_score[target]:.3g} nats"
            _point(hover, 0.49, (top + bottom) / 2, text)
            if step >= 3:
                stay = int(kept.reshape(now, -1)[target].sum())
                cut = top - stay * tall
                band(0.54, 0.80, (top, cut), (top, cut), colour(merged_kept[target]), 0.55)
                if stay < width // now:
                    bar(0.80, 0.90, cut, bottom, "rgba(0,0,0,0)", hollow=True)
                bar(0.80, 0.90, top, cut, colour(merged_kept[target]))
                share = merged_kept[target] / merged_score[target]
                label(0.91, (top + cut) / 2, f"{stay} {short}{wrapped}<b>{share:.0%}</b>", "left")
                text = f"head {target} keeps {stay} of {width // now} {ours} and {share:.1%} of its score"
                _point(hover, 0.85, (top + cut) / 2, text)
    label(0.11, 1.07, f"<b>{counted(before)}</b> × {per}")
    if step >= 2:
        label(0.49, 1.07, f"<b>{counted(now)}</b> × {width // now}")
    if step >= 3:
        stay = int(kept.sum()) // now
        label(0.85, 1.07, f"<b>{counted(now)}</b> × {stay}")
    ticks, labels = log_ticks(low, high)
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            **hover,
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {
                "size": 26,
                "opacity": 0,
                "color": np.linspace(low, high, len(hover["x"])),
                "colorscale": "Cividis",
                "cmin": low,
                "cmax": high,
                "showscale": True,
                "colorbar": {
                    "title": {"text": "score, nats", "side": "right", "font": {"size": 12, "color": theme.quiet}},
                    "tickvals": ticks,
                    "ticktext": labels,
                    "thickness": 10,
                    "len": 0.9,
                    "outlinewidth": 0,
                    "tickfont": {"color": theme.quiet},
                },
            },
        }
    ]
    layout: Spec = {
        "shapes": shapes,
        "annotations": annotations,
        "xaxis": {"visible": False, "range": [0, 1.04], "fixedrange": True},
        "yaxis": {"visible": False, "range": [-0.03, 1.13], "fixedrange": True},
    }
    figure = drawn(traces, layout, theme, height=height, margin=(8, 8, 8, 8))
    held = merged_kept.sum() / merged_score.sum()
    alt = (
        f"Attention of block {block}: {before} heads of {per} {ours} flow into {now} merged heads of "
        f"{width // now}, of which "
        f"each keeps {int(kept.sum()) // now}; together they hold {held:.0%} of the block's score."
    )
    return Chart(
        figure, f"Heads of block {block}", alt, lambda: _table(head_score, before, now, kept, merged_kept, merged_score)
    )


def _point(hover: dict[str, list[object]], x: float, y: float, text: str) -> None:
    for name, value in (("x", x), ("y", y), ("text", text)):
        hover[name].append(value)


def _table(
    head_score: np.ndarray, before: int, now: int, kept: np.ndarray, merged_kept: np.ndarray, merged_score: np.ndarray
) -> dict[str, np.ndarray]:
    target = np.arange(before) // (before // now)
    return {
        "head": np.arange(before),
        "score": head_score,
        "merged_into": target,
        "merged_score": merged_score[target],
        "channels_kept_of_merged": kept.reshape(now, -1).sum(1)[target],
        "score_kept_of_merged": merged_kept[target],
    }
