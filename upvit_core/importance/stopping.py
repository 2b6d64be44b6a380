"""A stopping rule for the number of images and of output directions: the kept set has to be stable.

Directions: on a pilot of images, S grows until S and S + 1 would keep the same channels to within the tolerance.
Images: their number doubles until the channels kept at half of them and at all of them agree to within the tolerance.
The figure compared is the lowest overlap of any component, when half of every block's channels are kept.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from upvit_core.importance.criterion import Progress, Proxy, Report, silent
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.ranking import keep_best
from upvit_core.importance.sharding import add
from upvit_core.models.adapter import Adapter
from upvit_core.models.output import with_output
from upvit_core.records.scores import ImportanceScores


@dataclass(frozen=True)
class StableFisher:
    """`fisher` with as many images of the proxy set, and as many directions, as a stable kept set needs.

    tolerance: share of kept channels that may still change. In the notes, `stability` is the overlap reached,
    and `stable` whether that was before the images ran out.
    """

    tolerance: float = 0.03
    pilot: int = 64
    most_directions: int = 4
    fisher: Fisher = field(default_factory=Fisher)
    name: str = "fisher"

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """Scores of all channels; `images` of the record is the number used."""
        adapter = with_output(adapter, proxy)
        S, agreed = self._directions(adapter, proxy)
        criterion = replace(self.fisher, num_directions=S)
        done, stability, stable = 0, 0.0, False
        record: ImportanceScores | None = None
        while done < len(proxy) and not stable:
            wanted = min(len(proxy), max(2 * done, self.pilot))
            start, seconds = done, 0.0 if record is None else record.seconds
            part = criterion.attribute(adapter, proxy.part(start, wanted), partial(_relay, report, start, wanted))
            joined = part if record is None else replace(add([record, part]), seconds=seconds + part.seconds)
            if record is not None:
                stability = kept_overlap(record, joined)
                stable = stability >= 1 - self.tolerance
            record, done = joined, wanted
        assert record is not None
        notes = {"stability": stability, "stable": stable, "tolerance": self.tolerance, "directions_agreement": agreed}
        return replace(record, data_digest=proxy.digest, notes={**record.notes, **notes})

    def _directions(self, adapter: Adapter, proxy: Proxy) -> tuple[int, float]:
        """The smallest S that keeps what S + 1 keeps on the pilot images, and their overlap."""
        few = proxy.part(0, min(self.pilot, len(proxy)))
        before = replace(self.fisher, num_directions=1).attribute(adapter, few)
        most = min(self.most_directions, adapter.shape.outputs - 1)
        overlap = 1.0
        for S in range(1, most):
            after = replace(self.fisher, num_directions=S + 1).attribute(adapter, few)
            overlap = kept_overlap(before, after)
            if overlap >= 1 - self.tolerance:
                return S, overlap
            before = after
        return max(most, 1), overlap


def kept_overlap(a: ImportanceScores, b: ImportanceScores) -> float:
    """Lowest over components of the share of channels that both keep when every key keeps its better half."""
    same: dict[str, list[int]] = {}
    for key in a.values:
        count = max(1, len(a.values[key]) // 2)
        kept = np.intersect1d(keep_best(a.values[key], count), keep_best(b.values[key], count))
        tally = same.setdefault(key.split(".")[0], [0, 0])
        tally[0] += len(kept)
        tally[1] += count
    return min(both / count for both, count in same.values())


def _relay(report: Report, start: int, end: int, progress: Progress) -> None:
    report(replace(progress, done=start + progress.done, total=end))
