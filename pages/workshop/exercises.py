"""Eight exercises on the demo. Nothing here knows an answer: each measures what was said, and judges by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pages.services import evaluation, jobs, removal, scoring
from pages.services.open_model import OpenModel
from pages.services.removal import Effect
from pages.workshop.room import Best
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

REMOVED_ON = 500
FFN_BLOCK = 2
SAFE_POINTS = 1.0
LEAST_TOP1 = 70.0
REFERENCE = WhatIf(50, 50, 3, 50)
SHARE_OF_RESIDUAL = 20
WAYS = {
    "Channels": WhatIf(50, 50, 6, 50),
    "Channels, repaired": WhatIf(50, 50, 6, 50, repair=True),
    "Directions": WhatIf(50, 50, 6, 50, basis="directions"),
    "Directions, repaired": WhatIf(50, 50, 6, 50, basis="directions", repair=True),
}
Answer = list[str | int]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer holds, why in one sentence, and the numbers measured: rows of (what, value)."""

    right: bool
    why: str
    rows: Sequence[tuple[str, str]]
    best: Best | None = None


@dataclass(frozen=True)
class Demo:
    """The demo model with its scores."""

    model: OpenModel
    scores: ImportanceScores

    def plan(self, what_if: WhatIf) -> PruningPlan:
        return what_if.plan(self.scores)

    def preview(self, what_if: WhatIf) -> jobs.Job[Any]:
        """The job that measures a what-if; of directions, first the one that finds their record, as on Trade-off."""
        scores, finding = scoring.for_planning(self.model, self.scores, what_if)
        if scores is None:
            assert finding is not None
            return finding
        return evaluation.preview(self.model, what_if.plan(scores), repair=what_if.repair)

    def look(self) -> jobs.Job[Any]:
        """The whole model, measured on the same images as every plan."""
        return self.preview(WhatIf(0, 0, self.model.shape.num_heads, 0))

    def removal(self, component: Component, block: int, number: int) -> jobs.Job[Effect]:
        return removal.removal_job(self.model, component, block, number, REMOVED_ON)

    def macs(self, what_if: WhatIf) -> int:
        return count_macs(self.plan(what_if).shape_after)


@dataclass(frozen=True)
class Exercise:
    """`measure` starts what must be measured for an answer; `task` reads the results, in the same order."""

    key: str
    title: str
    question: str
    measure: Callable[[Demo, Answer], list[jobs.Job[Any]]]
    task: Callable[[Demo, Answer, list[Any]], Verdict]
    lesson: str
    hint: str = ""
    options: Sequence[str | int] = field(default=())


def percent(result: Any) -> str:
    return f"top-1 {result.top1:.1f} %, KL {result.kl:.3g} nats an image"


def half(component: str) -> WhatIf:
    """Half of one component gone, the heads as they are."""
    changes: dict[str, Any] = {component: 50}
    return replace(WhatIf(0, 0, 6, 0), **changes)


PARTS = {"Residual": "residual", "Attention": "attention", "FFN": "ffn"}


def _judge_parts(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    kl = {name: result.kl for name, result in zip(PARTS, results, strict=True)}
    least = min(kl, key=kl.__getitem__)
    rows = [(f"half of {name} gone", percent(result)) for name, result in zip(PARTS, results, strict=True)]
    return Verdict(answer[0] == least, f"Least is lost when half of {least} goes.", rows)


def _strongest(demo: Demo, answer: Answer) -> list[int]:
    """The channel that was named, and the three of most score."""
    ranked = np.argsort(-demo.scores.residual, kind="stable")[:3]
    return [int(answer[0]), *(int(c) for c in ranked)]


def _judge_missed(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    found = dict(zip(_strongest(demo, answer), results, strict=True))
    most = max(found, key=lambda c: float(found[c].kl.sum()))
    rows = [
        (f"channel {c}", f"{r.kl.sum():.3g} nats over {len(r.kl)} images, {int(r.changed.sum())} predictions change")
        for c, r in found.items()
    ]
    return Verdict(int(answer[0]) == most, f"Of these, channel {most} is missed most.", rows)


def _judge_unmissed(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    result = results[0]
    changed, total = int(result.changed.sum()), float(result.kl.sum())
    why = f"Without it, {changed} of {len(result.kl)} predictions change."
    return Verdict(changed == 0, why, [(f"channel {answer[0]}", f"{total:.3g} nats over {len(result.kl)} images")])


def _ffn(share: int) -> WhatIf:
    return WhatIf(0, 0, 6, share)


def _judge_limit(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    whole, at, beyond = results
    share = int(answer[0])
    floor = whole.top1 - SAFE_POINTS
    rows = [("whole model", percent(whole)), (f"{share} % gone", percent(at)), (f"{share + 5} % gone", percent(beyond))]
    if at.top1 < floor:
        return Verdict(False, f"That is too much: {whole.top1 - at.top1:.1f} points are lost.", rows)
    if beyond.top1 >= floor:
        return Verdict(
            False, f"More can go: {share + 5} % still loses {whole.top1 - beyond.top1:.1f} points only.", rows
        )
    return Verdict(True, f"{share} % is within a point, {share + 5} % is not.", rows)


def _fewer(heads: int) -> int | None:
    return {6: 3, 3: 2, 2: 1}.get(heads)


def _measure_heads(demo: Demo, answer: Answer) -> list[jobs.Job[Any]]:
    heads = int(answer[0])
    wanted = [heads] + ([fewer] if (fewer := _fewer(heads)) else [])
    return [demo.preview(WhatIf(0, 0, h, 0)) for h in wanted]


def _judge_heads(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    heads = int(answer[0])
    names = [heads] + ([fewer] if (fewer := _fewer(heads)) else [])
    rows = [(f"{h} heads", percent(r)) for h, r in zip(names, results, strict=True)]
    if results[0].top1 < LEAST_TOP1:
        return Verdict(False, f"With {heads} the model falls below {LEAST_TOP1:.0f} %.", rows)
    if len(results) > 1 and results[1].top1 >= LEAST_TOP1:
        return Verdict(False, f"Fewer will do: {names[1]} heads stay above {LEAST_TOP1:.0f} %.", rows)
    return Verdict(True, f"{heads} is the fewest that stays above {LEAST_TOP1:.0f} %.", rows)


SUMS = ("More than the sum", "The sum, within 10 %", "Less than the sum")


def _judge_sum(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    told = predicted_loss(demo.scores, demo.plan(WhatIf(SHARE_OF_RESIDUAL, 0, 6, 0)))
    ratio = results[0].kl / told
    true = SUMS[0] if ratio > 1.1 else SUMS[2] if ratio < 0.9 else SUMS[1]
    rows = [("sum of single removals", f"{told:.3g} nats an image"), ("measured together", percent(results[0]))]
    return Verdict(answer[0] == true, f"Together they cost {ratio:.2g} times the sum.", rows)


def _judge_way(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    found = dict(zip(WAYS, results, strict=True))
    best = max(found, key=lambda name: (found[name].top1, -found[name].kl))
    rows = [(name, percent(result)) for name, result in found.items()]
    return Verdict(answer[0] == best, f"Best of the four: {best.lower()}.", rows)


def what_if_of(answer: Answer) -> WhatIf:
    residual, attention, heads, ffn = (int(value) for value in answer)
    return WhatIf(residual, attention, heads, ffn)


def _judge_beat(demo: Demo, answer: Answer, results: list[Any]) -> Verdict:
    own, reference = results
    mine = what_if_of(answer)
    limit, macs = demo.macs(REFERENCE), demo.macs(mine)
    rows = [
        (f"yours: {mine.words}", f"{macs / 1e6:.2f} M MACs, {percent(own)}"),
        (f"this plan: {REFERENCE.words}", f"{limit / 1e6:.2f} M MACs, {percent(reference)}"),
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
        "Half of one component goes, the others stay whole. With which one is the model's answer changed least (KL)?",
        lambda demo, answer: [demo.preview(half(part)) for part in PARTS.values()], _judge_parts,
        "The residual is read and written by every block; FFN and attention channels work in one block alone.",
        options=tuple(PARTS),
    ),
    Exercise(
        "missed", "The channel that is missed most",
        "Find the residual channel whose removal alone changes the answers most. Name its number.",
        lambda demo, answer: [demo.removal("residual", 0, c) for c in _strongest(demo, answer)], _judge_missed,
        "One channel can carry more than twenty others: that is why ranking before cutting pays.",
        hint="Importance, order by importance: rest the pointer on the brightest cell of the residual.",
    ),
    Exercise(
        "unmissed", "A channel that nobody misses",
        f"Name a hidden FFN channel of block {FFN_BLOCK} without which none of {REMOVED_ON} predictions changes.",
        lambda demo, answer: [demo.removal("ffn", FFN_BLOCK, int(answer[0]))], _judge_unmissed,
        "Most hidden channels are like this one. Pruning lives on them.",
        hint=f"Importance, block {FFN_BLOCK}, FFN: the dark end.",
    ),
    Exercise(
        "limit", "How far can the FFN go?",
        f"Only the FFN is cut. What is the largest share, in steps of 5 %, that costs at most {SAFE_POINTS:.0f} point "
        "of top-1?",
        lambda demo, answer: [demo.look(), demo.preview(_ffn(int(answer[0]))), demo.preview(_ffn(int(answer[0]) + 5))],
        _judge_limit,
        "Nearly nothing happens for long, then it falls quickly. No training has happened yet.",
        hint="Trade-off: residual and attention at 0 %, 6 heads, and Top-1 now.",
        options=tuple(range(5, 95, 5)),
    ),
    Exercise(
        "heads", "How many heads are enough?",
        f"Heads are merged, no channel is removed. What is the fewest that keeps top-1 at {LEAST_TOP1:.0f} % or more?",
        _measure_heads, _judge_heads,
        "Merged heads share one softmax. No channel left, and yet the model has changed: scores do not foresee that.",
        options=(6, 3, 2, 1),
    ),
    Exercise(
        "sum", "Do losses add up?",
        f"{SHARE_OF_RESIDUAL} % of the residual goes. Each of these channels was scored alone. Is the loss of all of "
        "them together more than the sum of their scores, equal, or less?",
        lambda demo, answer: [demo.preview(WhatIf(SHARE_OF_RESIDUAL, 0, 6, 0))], _judge_sum,
        "Channels stand in for one another: a score says what one removal costs while all the others stay.",
        options=SUMS,
    ),
    Exercise(
        "way", "The best of four ways",
        "Half of everything goes, six heads stay. Which way keeps most of top-1, without any training?",
        lambda demo, answer: [demo.preview(way) for way in WAYS.values()], _judge_way,
        "Rotated, what matters lies in few directions; and least squares mend what a cut has bent.",
        options=tuple(WAYS),
    ),
    Exercise(
        "beat", "Beat this plan",
        f"{REFERENCE.words} removed, channels, no training. Find a plan with at most as many MACs and a higher top-1.",
        lambda demo, answer: [demo.preview(what_if_of(answer)), demo.preview(REFERENCE)], _judge_beat,
        "Equal ratios are convenient, not best. The list of the room shows how far one can get.",
        hint="The first exercise told you which component is the wrong place to save.",
    ),
)  # fmt: skip
