"""Eight exercises on the demo. No answer is stored: each answer is measured and judged by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pages.services import evaluation, jobs, removal, scoring
from pages.services.open_model import OpenModel
from pages.services.removal import Effect
from pages.widgets import tables
from pages.widgets.tables import Tile
from pages.workshop.room import Best
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

REMOVED_ON = 500
FFN_BLOCK = 2
SAFE_POINTS = 1.0
LEAST_TOP1 = 70.0
REFERENCE = WhatIf(50, 50, 3, 50)
SHARE_OF_RESIDUAL = 20
HEADS = (6, 3, 2, 1)
FOUR_CUTS = {
    "Channels": WhatIf(50, 50, 6, 50),
    "Channels, repaired": WhatIf(50, 50, 6, 50, repair=True),
    "Directions": WhatIf(50, 50, 6, 50, basis=Basis.DIRECTIONS),
    "Directions, repaired": WhatIf(50, 50, 6, 50, basis=Basis.DIRECTIONS, repair=True),
}
Answer = list[str | int]
Measurement = jobs.Job[Any]  # of an `Evaluation`, an `Effect`, or the scores that they wait for


@dataclass(frozen=True)
class Bar:
    """One of the things compared: its height, its component or "", and images whose answers it changes."""

    name: str
    height: float
    component: str = ""
    tiles: Sequence[Tile] = ()


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer: right or not, the reason in one sentence, and rows of (what was measured, value).

    bars: everything that was compared; they are shown once the answer is right, or the host reveals it. own: how many
    of the rows, from the first, are of the answer and are shown at once.
    """

    right: bool
    why: str
    rows: Sequence[tuple[str, str]]
    best: Best | None = None
    bars: Sequence[Bar] = ()
    own: int | None = None


@dataclass(frozen=True)
class Demo:
    """The demo model with its scores."""

    model: OpenModel
    scores: ImportanceScores

    def plan(self, what_if: WhatIf) -> PruningPlan:
        return what_if.plan(self.scores)

    def preview(self, what_if: WhatIf) -> Measurement:
        """The job that measures a what-if; for directions without a record, first the job that makes the record."""
        scores, finding = scoring.for_planning(self.model, self.scores, what_if)
        if scores is None:
            assert finding is not None
            return finding
        return evaluation.preview(self.model, what_if.plan(scores), repair=what_if.repair)

    def whole(self) -> Measurement:
        """The job that measures the whole model on the same images as every plan."""
        return self.preview(WhatIf(0, 0, self.model.shape.num_heads, 0))

    def changed(self, what_if: WhatIf) -> tuple[Tile, ...]:
        """Images whose answers a what-if that was measured here changes, the lost ones first."""
        scores, _ = scoring.for_planning(self.model, self.scores, what_if)
        plan = None if scores is None else what_if.plan(scores)
        known = None if plan is None else evaluation.changes(self.model, plan, repair=what_if.repair)
        return () if known is None else tuple(tables.changed_tiles(known.examples[: tables.SHOWN]))

    def removal(self, component: Component, block: int, number: int) -> jobs.Job[Effect]:
        return removal.removal_job(self.model, component, block, number, REMOVED_ON)

    def macs(self, what_if: WhatIf) -> int:
        return count_macs(self.plan(what_if).shape_after)


@dataclass(frozen=True)
class Exercise:
    """`measure` starts the measurements that an answer needs; `judge` reads their results, in the same order."""

    key: str
    title: str
    question: str
    measure: Callable[[Demo, Answer], list[Measurement]]
    judge: Callable[[Demo, Answer, list[Any]], Verdict]
    lesson: str
    hint: str = ""
    options: Sequence[str | int] = field(default=())

    @property
    def short(self) -> str:
        return SHORT[self.key]


SHORT = {
    "parts": "Parts", "missed": "Most", "unmissed": "Least", "limit": "FFN", "heads": "Heads", "sum": "Sums",
    "way": "Cuts", "beat": "Beat it",
}  # fmt: skip


def kl_of(result: Evaluation) -> float:
    assert result.kl is not None
    return result.kl


def accuracy(result: Evaluation) -> str:
    return f"top-1 {result.top1:.1f} %, KL {kl_of(result):.3g} nats an image"


def half(component: str) -> WhatIf:
    """Half of one component removed, the heads unchanged."""
    changes: dict[str, Any] = {component: 50}
    return replace(WhatIf(0, 0, 6, 0), **changes)


PARTS = {"Residual": "residual", "Attention": "attention", "FFN": "ffn"}


ONE_BLOCK = "Each of its channels works in one block alone, while the residual is read and written by every block."


def _judge_parts(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    kl = {name: kl_of(result) for name, result in zip(PARTS, results, strict=True)}
    least = min(kl, key=kl.__getitem__)
    rows = [(f"half of {name} removed", accuracy(result)) for name, result in zip(PARTS, results, strict=True)]
    rows.sort(key=lambda row: f"half of {answer[0]} " not in row[0])
    right = answer[0] == least
    why = f"Half of {answer[0]} moves the answers {'least' if right else 'more than half of another part'}."
    why += f" {ONE_BLOCK}" if right and least != "Residual" else ""
    bars = [Bar(name, value, PARTS[name], demo.changed(half(PARTS[name]))) for name, value in kl.items()]
    return Verdict(right, why, rows, bars=bars, own=1)


def _strongest(demo: Demo, answer: Answer) -> list[int]:
    """The channel of the answer, and the three with the highest scores."""
    ranked = np.argsort(-demo.scores.residual, kind="stable")[:3]
    return [int(answer[0]), *(int(c) for c in ranked)]


def _judge_missed(demo: Demo, answer: Answer, results: list[Effect]) -> Verdict:
    effects = dict(zip(_strongest(demo, answer), results, strict=True))
    most = max(effects, key=lambda c: float(effects[c].kl.sum()))
    rows = [
        (f"channel {c}", f"{r.kl.mean():.3g} nats an image, {int(r.changed.sum())} predictions change")
        for c, r in effects.items()
    ]
    right = int(answer[0]) == most
    why = "No other channel moves the answers as much." if right else "Another channel moves the answers more."
    bars = [
        Bar(
            f"channel {c}",
            float(r.kl.mean()),
            "residual",
            tuple(tables.effect_tiles(demo.model, r, np.lexsort((-r.kl, ~r.changed))[: tables.SHOWN].tolist())),
        )
        for c, r in effects.items()
    ]
    return Verdict(right, why, rows, bars=bars, own=1)


def _judge_unmissed(demo: Demo, answer: Answer, results: list[Effect]) -> Verdict:
    result = results[0]
    changed, mean = int(result.changed.sum()), float(result.kl.mean())
    why = f"Without it, {changed} of {len(result.kl)} predictions change."
    return Verdict(changed == 0, why, [(f"channel {answer[0]}", f"{mean:.3g} nats an image")])


def _measure_limit(demo: Demo, answer: Answer) -> list[Measurement]:
    share = int(answer[0])
    return [demo.whole(), *(demo.preview(WhatIf(0, 0, 6, cut)) for cut in (share, share + 5))]


def _judge_limit(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    whole, at, beyond = results
    share = int(answer[0])
    floor = whole.top1 - SAFE_POINTS
    rows = [("whole model", accuracy(whole))]
    rows += [(f"{share} % removed", accuracy(at)), (f"{share + 5} % removed", accuracy(beyond))]
    if at.top1 < floor:
        return Verdict(False, f"That is too much: it costs {whole.top1 - at.top1:.1f} points.", rows)
    if beyond.top1 >= floor:
        return Verdict(False, f"More is possible: {share + 5} % costs {whole.top1 - beyond.top1:.1f} points.", rows)
    return Verdict(True, f"{share} % is within a point, {share + 5} % is not.", rows)


def _and_fewer(heads: int) -> list[int]:
    """The head count of the answer, and the next smaller one."""
    return [count for count in HEADS if count <= heads][:2]


def _measure_heads(demo: Demo, answer: Answer) -> list[Measurement]:
    return [demo.preview(WhatIf(0, 0, heads, 0)) for heads in _and_fewer(int(answer[0]))]


def _judge_heads(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    heads = int(answer[0])
    counts = _and_fewer(heads)
    rows = [(f"{count} heads", accuracy(result)) for count, result in zip(counts, results, strict=True)]
    if results[0].top1 < LEAST_TOP1:
        return Verdict(False, f"With {heads} the model falls below {LEAST_TOP1:.0f} %.", rows)
    if len(results) > 1 and results[1].top1 >= LEAST_TOP1:
        return Verdict(False, f"Fewer are enough: {counts[1]} heads stay above {LEAST_TOP1:.0f} %.", rows)
    return Verdict(True, f"{heads} is the fewest that stays above {LEAST_TOP1:.0f} %.", rows)


SUMS = ("More than the sum", "The sum, within 10 %", "Less than the sum")


def _judge_sum(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    total = predicted_loss(demo.scores, demo.plan(WhatIf(SHARE_OF_RESIDUAL, 0, 6, 0)))
    ratio = kl_of(results[0]) / total
    true = SUMS[0] if ratio > 1.1 else SUMS[2] if ratio < 0.9 else SUMS[1]
    rows = [("sum of single removals", f"{total:.3g} nats an image"), ("measured together", accuracy(results[0]))]
    return Verdict(answer[0] == true, f"Together they cost {ratio:.2g} times the sum.", rows)


def _judge_way(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    measured = dict(zip(FOUR_CUTS, results, strict=True))
    best = max(measured, key=lambda name: (measured[name].top1, -kl_of(measured[name])))
    rows = [(name, accuracy(result)) for name, result in measured.items()]
    rows.sort(key=lambda row: row[0] != answer[0])
    right = answer[0] == best
    why = f"{best} keeps most." if right else "Another of the four keeps more."
    bars = [Bar(name, result.top1, tiles=demo.changed(FOUR_CUTS[name])) for name, result in measured.items()]
    return Verdict(right, why, rows, bars=bars, own=1)


def what_if_of(answer: Answer) -> WhatIf:
    residual, attention, heads, ffn = (int(value) for value in answer)
    return WhatIf(residual, attention, heads, ffn)


def _judge_beat(demo: Demo, answer: Answer, results: list[Evaluation]) -> Verdict:
    own, reference = results
    mine = what_if_of(answer)
    limit, macs = demo.macs(REFERENCE), demo.macs(mine)
    rows = [
        (f"yours: {mine.words}", f"{macs / 1e6:.2f} M MACs, {accuracy(own)}"),
        (f"this plan: {REFERENCE.words}", f"{limit / 1e6:.2f} M MACs, {accuracy(reference)}"),
    ]
    if macs > limit:
        return Verdict(False, f"Yours has {macs / 1e6:.2f} M MACs; at most {limit / 1e6:.2f} M are allowed.", rows)
    gap = own.top1 - reference.top1
    if gap <= 0:
        return Verdict(False, f"Yours has {-gap:.1f} points less.", rows)
    return Verdict(True, f"Yours has {gap:.1f} points more.", rows, Best(top1=own.top1, macs=macs, words=mine.words))


EXERCISES = (
    Exercise(
        "parts", "Which component can lose most?",
        "Half of one component is removed, the others stay whole. Which one changes the answers least (KL)?",
        lambda demo, answer: [demo.preview(half(part)) for part in PARTS.values()], _judge_parts,
        "The residual is read and written by every block; FFN and attention channels work in one block alone.",
        options=tuple(PARTS),
    ),
    Exercise(
        "missed", "The most important channel",
        "Find the residual channel whose removal alone changes the answers most. Name its number.",
        lambda demo, answer: [demo.removal("residual", 0, c) for c in _strongest(demo, answer)], _judge_missed,
        "One channel can carry more than twenty others: that is why ranking before cutting pays.",
        hint="Importance, order by importance: rest the pointer on the brightest cell of the residual.",
    ),
    Exercise(
        "unmissed", "A channel that does not matter",
        f"Name a hidden FFN channel of block {FFN_BLOCK} without which none of {REMOVED_ON} predictions changes.",
        lambda demo, answer: [demo.removal("ffn", FFN_BLOCK, int(answer[0]))], _judge_unmissed,
        "Most hidden channels are like this one. Pruning removes them.",
        hint=f"Importance, block {FFN_BLOCK}, FFN: the dark end.",
    ),
    Exercise(
        "limit", "How far can the FFN go?",
        f"Only the FFN is cut. What is the largest share, in steps of 5 %, that costs at most {SAFE_POINTS:.0f} point "
        "of top-1?",
        _measure_limit, _judge_limit,
        "For long almost nothing happens, then top-1 falls quickly. There was no training yet.",
        hint="Trade-off: residual and attention at 0 %, 6 heads, and Top-1 now.",
        options=tuple(range(5, 95, 5)),
    ),
    Exercise(
        "heads", "How many heads are enough?",
        f"Heads are merged, no channel is removed. What is the fewest that keeps top-1 at {LEAST_TOP1:.0f} % or more?",
        _measure_heads, _judge_heads,
        "Merged heads share one softmax. No channel was removed, yet the model changed: scores cannot predict that.",
        options=HEADS,
    ),
    Exercise(
        "sum", "Do losses add up?",
        f"{SHARE_OF_RESIDUAL} % of the residual is removed. Each of these channels was scored alone. Does removing all "
        "of them cost more than the sum of their scores, as much, or less?",
        lambda demo, answer: [demo.preview(WhatIf(SHARE_OF_RESIDUAL, 0, 6, 0))], _judge_sum,
        "Channels stand in for one another: a score says what one removal costs while all the others stay.",
        options=SUMS,
    ),
    Exercise(
        "way", "The best of four cuts",
        "Half of everything is removed, six heads stay. Which cut keeps most of top-1, without any training?",
        lambda demo, answer: [demo.preview(way) for way in FOUR_CUTS.values()], _judge_way,
        "After a rotation few directions hold most of the stream, and least squares repair the cut.",
        options=tuple(FOUR_CUTS),
    ),
    Exercise(
        "beat", "Beat this plan",
        "Half of residual, attention and FFN is removed, 3 heads stay, no training. Find a plan with at most as many "
        "MACs and a higher top-1.",
        lambda demo, answer: [demo.preview(what_if_of(answer)), demo.preview(REFERENCE)], _judge_beat,
        "Equal ratios are convenient, not best. The list of the room shows how far one can get.",
        hint="The first exercise shows which component costs most to cut.",
    ),
)  # fmt: skip
