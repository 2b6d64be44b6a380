"""Merging heads: h_b heads flow into h_t, each band as wide as its channels, coloured by the score they carry."""

from dataclasses import dataclass

import numpy as np

from upvit_core.figures.score_grid import heads_after, kept_mask, member_word
from upvit_core.figures.theme import CLEAR, COLOURS, Chart, Spec, Theme, colour_bar, drawn, log_ticks, markers, note
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

GAP = 0.012  # between heads, of the picture's height
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
    scores: ImportanceScores,
    plan: PruningPlan,
    block: int,
    theme: Theme,
    *,
    height: int = 330,
    step: int = 3,
    by_score: bool = True,
) -> Chart:
    """Heads of one block before (left), merged (middle), and after the least important channels are gone (right).

    `step` shows the picture up to a moment: 1 heads as they are, 2 merged, 3 cut. Not `by_score`: in one colour, for
    the flow alone.
    """
    scores = scores.per_sample
    merge = _merge_of(scores, plan, block)
    sketch = _Sketch(merge, theme, by_score)
    sketch.heads()
    if step >= 2:
        sketch.merged()
    if step >= 3:
        sketch.kept()
    layout: Spec = {
        "shapes": sketch.shapes,
        "annotations": sketch.notes,
        "xaxis": {"visible": False, "range": [0, 1.04], "fixedrange": True},
        "yaxis": {"visible": False, "range": [-0.03, 1.13], "fixedrange": True},
    }
    figure = drawn([sketch.hover()], layout, theme, height=height, margin=(8, 8, 8, 8))
    held = merge.kept_score.sum() / merge.merged_score.sum()
    alt = (
        f"Attention of block {block}: {merge.before} heads of {merge.per_head} {merge.members} flow into {merge.now} "
        f"merged heads of {merge.per_merged}, of which each keeps {int(merge.kept.sum()) // merge.now}; together they "
        f"hold {held:.0%} of the block's score."
    )
    return Chart(figure, f"Heads of block {block}", alt, merge.table)


@dataclass(frozen=True)
class _Merge:
    """Scores of `before` heads, of the `now` heads into which they are merged, and what those keep.

    kept: channels that stay, (now, channels of a merged head). members: `channels` or `directions`.
    """

    head_score: np.ndarray
    merged_score: np.ndarray
    kept_score: np.ndarray
    kept: np.ndarray
    width: int
    members: str

    @property
    def before(self) -> int:
        return len(self.head_score)

    @property
    def now(self) -> int:
        return len(self.merged_score)

    @property
    def per_head(self) -> int:
        return self.width // self.before

    @property
    def per_merged(self) -> int:
        return self.width // self.now

    def table(self) -> dict[str, np.ndarray]:
        target = np.arange(self.before) // (self.before // self.now)
        return {
            "head": np.arange(self.before),
            "score": self.head_score,
            "merged_into": target,
            "merged_score": self.merged_score[target],
            "channels_kept_of_merged": self.kept.sum(1)[target],
            "score_kept_of_merged": self.kept_score[target],
        }


def _merge_of(scores: ImportanceScores, plan: PruningPlan, block: int) -> _Merge:
    values = np.maximum(scores.attention(block), 1e-12)
    before, now = scores.shape.blocks[block].num_heads, heads_after(plan, scores, block)
    kept = kept_mask(plan, scores, "attention", block)
    merged, stays = (part.reshape(now, -1).sum(1) for part in (values, np.where(kept, values, 0)))
    members = f"{member_word(scores, 'attention')}s"
    return _Merge(values.reshape(before, -1).sum(1), merged, stays, kept.reshape(now, -1), len(values), members)


class _Sketch:
    """Bars for heads at three places from left to right, and the bands between them."""

    def __init__(self, merge: _Merge, theme: Theme, by_score: bool):
        self.merge, self.theme, self.by_score = merge, theme, by_score
        self.shapes: list[Spec] = []
        self.notes: list[Spec] = []
        self.points: list[tuple[float, float, str]] = []
        logs = np.log10(np.concatenate([merge.head_score, merge.merged_score]))
        self.low, self.high = float(logs.min()), float(max(logs.max(), logs.min() + 0.3))
        before, now = merge.before, merge.now
        space = GAP * (before - 1)
        self.tall = (1 - space) / merge.width  # height of one channel
        step = merge.per_merged * self.tall + (space / max(now - 1, 1) if now > 1 else 0.0)
        self.tops = [1 - head * (merge.per_head * self.tall + GAP) for head in range(before)]
        self.merged_tops = [1 - head * step - (0 if now > 1 else space / 2) for head in range(now)]

    def heads(self) -> None:
        """The heads as they are."""
        merge = self.merge
        for head, (top, score) in enumerate(zip(self.tops, merge.head_score, strict=True)):
            bottom = top - merge.per_head * self.tall
            middle = (top + bottom) / 2
            self._bar(0.06, 0.16, top, bottom, self._colour(score))
            self._label(0.05, middle, f"{head}", "right")
            self.points.append((0.11, middle, f"head {head}: {merge.per_head} {merge.members}, score {score:.3g} nats"))
        self._label(0.11, 1.07, f"<b>{counted(merge.before)}</b> × {merge.per_head}")

    def merged(self) -> None:
        """The heads into which they flow."""
        merge, tall = self.merge, self.merge.per_head * self.tall
        for head, (top, score) in enumerate(zip(self.tops, merge.head_score, strict=True)):
            target, place = divmod(head, merge.before // merge.now)
            right = self.merged_tops[target] - place * tall
            self._band(0.16, 0.44, (top, top - tall), (right, right - tall), self._colour(score))
        for head, (top, score) in enumerate(zip(self.merged_tops, merge.merged_score, strict=True)):
            bottom = top - merge.per_merged * self.tall
            self._bar(0.44, 0.54, top, bottom, self._colour(score))
            text = f"merged head {head}: {merge.per_merged} {merge.members}, score {score:.3g} nats"
            self.points.append((0.49, (top + bottom) / 2, text))
        self._label(0.49, 1.07, f"<b>{counted(merge.now)}</b> × {merge.per_merged}")

    def kept(self) -> None:
        """The channels that stay in each merged head."""
        merge = self.merge
        short = "dir." if merge.members == "directions" else "ch"
        for head, (top, score) in enumerate(zip(self.merged_tops, merge.kept_score, strict=True)):
            stay = int(merge.kept[head].sum())
            bottom, cut = top - merge.per_merged * self.tall, top - stay * self.tall
            self._band(0.54, 0.80, (top, cut), (top, cut), self._colour(score))
            if stay < merge.per_merged:
                self._bar(0.80, 0.90, cut, bottom, CLEAR, hollow=True)
            self._bar(0.80, 0.90, top, cut, self._colour(score))
            share = score / merge.merged_score[head]
            wrapped = "<br>" if merge.now <= 6 else " · "
            self._label(0.91, (top + cut) / 2, f"{stay} {short}{wrapped}<b>{share:.0%}</b>", "left")
            text = f"head {head} keeps {stay} of {merge.per_merged} {merge.members} and {share:.1%} of its score"
            self.points.append((0.85, (top + cut) / 2, text))
        self._label(0.85, 1.07, f"<b>{counted(merge.now)}</b> × {int(merge.kept.sum()) // merge.now}")

    def hover(self) -> Spec:
        """Unseen points with what each bar is, and the scale of the colours."""
        x, y, text = (list(column) for column in zip(*self.points, strict=True))
        if not self.by_score:
            return markers(x, y, {"size": 26, "opacity": 0}, text=text, hovertemplate="%{text}<extra></extra>")
        ticks, labels = log_ticks(self.low, self.high)
        bar = colour_bar(self.theme, "score, nats", tickvals=ticks, ticktext=labels, thickness=10, len=0.9)
        bar["tickfont"] = {"color": self.theme.quiet}
        scale = {"colorscale": "Cividis", "cmin": self.low, "cmax": self.high, "showscale": True}
        colours = np.linspace(self.low, self.high, len(x))
        marker = {
            "size": 26,
            "opacity": 0,
            "color": colours,
            "colorbar": {**bar, "tickfont": {"color": self.theme.quiet}},
        }
        return markers(x, y, {**marker, **scale}, text=text, hovertemplate="%{text}<extra></extra>")

    def _colour(self, score: float) -> str:
        if not self.by_score:
            return COLOURS["attention"]
        return cividis((np.log10(max(score, 1e-12)) - self.low) / (self.high - self.low))

    def _band(self, x0: float, x1: float, left: tuple[float, float], right: tuple[float, float], fill: str) -> None:
        bend = (x0 + x1) / 2
        path = (
            f"M {x0},{left[0]:.5f} C {bend},{left[0]:.5f} {bend},{right[0]:.5f} {x1},{right[0]:.5f} "
            f"L {x1},{right[1]:.5f} C {bend},{right[1]:.5f} {bend},{left[1]:.5f} {x0},{left[1]:.5f} Z"
        )
        self.shapes.append({"type": "path", "path": path, "fillcolor": fill, "opacity": 0.55, "line": {"width": 0}})

    def _bar(self, x0: float, x1: float, top: float, bottom: float, fill: str, *, hollow: bool = False) -> None:
        line = {"color": COLOURS["attention"], "width": 1.5, "dash": "dot"} if hollow else {"width": 0}
        places = {"x0": x0, "x1": x1, "y0": bottom, "y1": top}
        self.shapes.append({"type": "rect", **places, "fillcolor": fill, "line": line})

    def _label(self, x: float, y: float, text: str, anchor: str = "center") -> None:
        self.notes.append(note(text, x, y, self.theme.text, xanchor=anchor))
