"""`refine`: the fast estimate for every channel, the exact score only where the cut is in doubt.

The error of the estimate is learnt on the way: the log-ratio exact / estimate of the channels already scored exactly
gives, per component and block, a bias and a spread; the channels whose estimate lies fewest spreads from a cut are
scored next, until the allowance of exact passes is used up. The residual, for which the estimate is weakest and which
has few channels, is scored exactly as a whole where the allowance permits.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from upvit_core.importance.criterion import Clock, Progress, Proxy, Report, Request, silent
from upvit_core.importance.fisher import Fisher, make_fisher
from upvit_core.importance.kl import KL, make_kl
from upvit_core.models.adapter import Adapter
from upvit_core.models.output import with_output
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class Cut:
    """One cut: per key, in how many equal groups (merged heads) the channels fall and how many of each group stay."""

    groups: dict[str, tuple[int, int]]


def default_cuts(shape: ModelShape) -> tuple[Cut, ...]:
    """Cuts at 50 % and 75 % of every component, heads as they are."""
    cuts = []
    for share in (0.5, 0.25):
        groups = {g.key: (g.heads, max(1, round(g.width // g.heads * share))) for g in shape.groups}
        cuts.append(Cut(groups))
    return tuple(cuts)


def cut_of(plan: PruningPlan) -> Cut:
    """The cut that a plan makes in every group of its source model."""
    groups = {}
    for group in plan.shape_before.groups:
        heads = (plan.heads_of(group.place) or group.heads) if group.component == "attention" else group.heads
        groups[group.key] = (heads, len(plan.kept(group.key)) // heads)
    return Cut(groups)


@dataclass(frozen=True)
class Refine:
    """Settings: the cuts that matter, and the share of all exact passes that may be spent on them.

    `on_update` receives the record as it fills in: the estimate at once, then after every few keys of a round.
    """

    cuts: Sequence[Cut]
    allowance: float = 0.25
    rounds: int = 3
    parts: int = 6
    fisher: Fisher = field(default_factory=Fisher)
    kl: KL = field(default_factory=KL)
    on_update: Callable[[ImportanceScores], None] | None = None
    name: str = "refine"

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """Scores of all channels; `notes` hold by key how many are `exact` and which, and their share of all."""
        adapter = with_output(adapter, proxy)
        clock = Clock(1.0, "share", silent)
        scores = self.fisher.attribute(adapter, proxy, report)
        estimate = {key: value.copy() for key, value in scores.values.items()}
        stderr = dict(scores.stderr)
        exact = {key: np.zeros(len(value), bool) for key, value in estimate.items()}
        total = sum(len(value) for value in estimate.values())
        left = allowed = int(self.allowance * total)
        values = {key: value.copy() for key, value in estimate.items()}

        def update() -> None:
            if self.on_update is not None:
                self.on_update(self._record(scores, values, stderr, exact, clock.seconds))

        update()
        exactly = Clock(float(allowed), "exact passes", report)
        for number in range(self.rounds):
            chosen: dict[str, tuple[int, ...]] = {}
            residual = {key: len(value) for key, value in estimate.items() if key.startswith("residual")}
            if number == 0 and sum(residual.values()) <= left / 2:
                chosen = {key: tuple(range(width)) for key, width in residual.items()}
                left -= sum(residual.values())
            doubtful = self._doubtful(values, estimate, exact, left // (self.rounds - number), without=chosen)
            left -= sum(len(channels) for channels in doubtful.values())
            chosen |= doubtful
            if not chosen:
                break
            for order, few in enumerate(_parts(chosen, self.parts)):
                part = self._exactly(adapter, proxy, few, f"{number}.{order}", exactly)
                for key, channels in few.items():
                    index = list(channels)
                    values[key][index] = part.values[key][index]
                    if key in stderr:
                        stderr[key] = stderr[key].copy()
                        stderr[key][index] = part.stderr[key][index]
                    exact[key][index] = True
                    bias, _ = _log_ratio(values[key], estimate[key], exact[key])
                    values[key] = np.where(exact[key], values[key], estimate[key] * np.exp(bias))
                update()
        return self._record(scores, values, stderr, exact, clock.seconds)

    def _exactly(
        self, adapter: Adapter, proxy: Proxy, chosen: dict[str, tuple[int, ...]], name: str, clock: Clock
    ) -> ImportanceScores:
        count, reported = sum(len(channels) for channels in chosen.values()), 0.0

        def relay(progress: Progress) -> None:
            nonlocal reported
            clock.advance(count * (progress.share - reported), f"exact: {progress.what}")
            reported = progress.share

        journal = self.kl.journal and self.kl.journal.with_suffix(f".{name}{self.kl.journal.suffix}")
        return replace(self.kl, journal=journal, channels=chosen).attribute(adapter, proxy, relay)

    def _doubtful(
        self,
        values: dict[str, np.ndarray],
        estimate: dict[str, np.ndarray],
        exact: dict[str, np.ndarray],
        count: int,
        without: Collection[str],
    ) -> dict[str, tuple[int, ...]]:
        """The `count` channels not yet exact, of keys other than `without`, that lie fewest spreads from a cut."""
        distance = {key: np.full(len(value), np.inf) for key, value in values.items()}
        for cut in self.cuts:
            for key, (groups, kept) in cut.groups.items():
                _, spread = _log_ratio(values[key], estimate[key], exact[key])
                logs = np.log(np.maximum(values[key], np.finfo(float).tiny)).reshape(groups, -1)
                if kept >= logs.shape[1]:
                    continue
                ordered = -np.sort(-logs, axis=1)
                threshold = (ordered[:, kept - 1] + ordered[:, kept]) / 2
                here = (np.abs(logs - threshold[:, None]) / spread).ravel()
                distance[key] = np.minimum(distance[key], here)
        candidates = [  # rounded: the channels on both sides of a cut are equally far from it, up to rounding errors
            (round(float(distance[key][c]), 6), key, int(c))
            for key in values.keys() - without
            for c in np.flatnonzero(~exact[key] & (distance[key] < np.inf))
        ]
        chosen: dict[str, list[int]] = {}
        for _, key, channel in sorted(candidates)[: max(count, 0)]:
            chosen.setdefault(key, []).append(channel)
        return {key: tuple(sorted(channels)) for key, channels in chosen.items()}

    def _record(
        self,
        scores: ImportanceScores,
        values: dict[str, np.ndarray],
        stderr: dict[str, np.ndarray],
        exact: dict[str, np.ndarray],
        seconds: float,
    ) -> ImportanceScores:
        share = sum(int(e.sum()) for e in exact.values()) / sum(len(e) for e in exact.values())
        channels = {key: np.flatnonzero(e).tolist() for key, e in exact.items()}
        counts = {key: len(indices) for key, indices in channels.items()}
        notes = {**scores.notes, "exact": counts, "exact_share": share, "exact_channels": channels}
        copies = {key: value.copy() for key, value in values.items()}
        return scores.with_values(copies, stderr=dict(stderr), criterion=self.name, seconds=seconds, notes=notes)


def make_refine(request: Request) -> Refine:
    return Refine(default_cuts(request.shape), kl=make_kl(request), fisher=make_fisher(request))


def _parts(chosen: dict[str, tuple[int, ...]], most: int) -> list[dict[str, tuple[int, ...]]]:
    """The keys in at most `most` parts of about as many channels, one after another."""
    count, parts, held = sum(map(len, chosen.values())), [dict[str, tuple[int, ...]]()], 0
    for key, channels in chosen.items():
        if parts[-1] and held >= len(parts) * count / most:
            parts.append({})
        parts[-1][key] = channels
        held += len(channels)
    return parts


def _log_ratio(values: np.ndarray, estimate: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Median and spread of log(exact / estimate); a spread of 0.1 is assumed until eight channels are exact."""
    good = exact & (values > 0) & (estimate > 0)
    if good.sum() < 8:
        return 0.0, 0.1
    ratio = np.log(values[good] / estimate[good])
    return float(np.median(ratio)), max(float(ratio.std()), 1e-3)
