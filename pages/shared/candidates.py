"""Plans worth a look, whether or not anyone tried them: the best at many costs, drawn on the front."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pages.shared import device, jobs, measured, opened, whatif
from pages.shared.opened import Opened
from pages.shared.plans import Tried
from pages.shared.whatif import WhatIf
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.front import candidates
from upvit_core.planning.plan import PruningPlan
from upvit_core.planning.staged import percents_of
from upvit_core.planning.widths import widths_of
from upvit_core.profiling.macs import count_macs, count_parameters

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation


@dataclass(frozen=True)
class Candidate:
    """A plan and what is known of it before anything is measured."""

    name: str
    plan: PruningPlan
    entry: Tried


def start(model: Opened, scores: ImportanceScores, now: WhatIf) -> jobs.Job:
    """The job that finds the best plans at ten shares of the MACs, of three kinds; its result is [Candidate]."""

    def work(report: jobs.Report) -> list[Candidate]:
        basis = "directions" if scores.basis == "directions" else now.basis
        own = {} if model.shape.one_share else {"heads": now.heads, "round_to": now.round_to, "basis": basis}
        found = candidates(scores, **own)  # type: ignore[arg-type]
        plain = replace(now, widths="", repair=False, depth=None)
        made = []
        for name, plan in found:
            shape = plan.shape_after
            if shape.one_share:
                what_if = replace(plain, **percents_of(plan), allocation="uniform", round_to=1)
            else:
                what_if = whatif.of_widths(widths_of(shape), model.shape, plain)
            costs = count_parameters(shape), count_macs(shape), predicted_loss(scores, plan)
            made.append(Candidate(name, plan, Tried(what_if, *costs, speed_up=0.0)))
        return made

    return jobs.start(_key("front", model, scores, now), work, "Finding good plans")


def _key(what: str, model: Opened, scores: ImportanceScores, now: WhatIf) -> str:
    return f"{what} {opened.identity(model)} {scores.digest} {now.heads} {now.round_to} {now.basis}"


def measure_key(model: Opened, scores: ImportanceScores, now: WhatIf, spec: str) -> str:
    return f"{_key('measure front', model, scores, now)} {spec}"


def measure(model: Opened, scores: ImportanceScores, now: WhatIf, spec: str, found: list[Candidate]) -> jobs.Job:
    """The job that cuts and evaluates every candidate; its result is {digest of the plan: Evaluation}."""

    def work(report: jobs.Report) -> dict[str, Evaluation]:
        results = {}
        for number, candidate in enumerate(found):
            plan = candidate.plan
            report.say(f"plan {number + 1} of {len(found)}", number / len(found))
            results[plan.digest] = measured.evaluate_plan(model, plan, spec, report.quietly(), repair=False)
        return results

    return jobs.start(measure_key(model, scores, now, spec), work, "Measuring the front", long=True)


def tried(
    model: Opened, scores: ImportanceScores, found: list[Candidate], results: dict[str, Evaluation]
) -> list[tuple[str, Tried]]:
    """Candidates as entries of the front, with what has been measured of them."""
    known, batch, judge = device.calibration(model.shape), device.batch_of(model), judge_of(model.shape)
    before = device.milliseconds(model.shape, batch) if known is not None else None
    entries = []
    for candidate in found:
        plan, entry = candidate.plan, candidate.entry
        after = device.milliseconds(plan.shape_after, batch) if before is not None else None
        if before and after:
            entry = replace(entry, speed_up=before / after)
        result = results.get(plan.digest)
        if result is not None:
            low, high = judge.interval(result)
            entry = replace(
                entry, value=judge.value(result), low=low, high=high, kl=result.kl, images=result.images
            )  # fmt: skip
        entries.append((candidate.name, entry))
    return entries
