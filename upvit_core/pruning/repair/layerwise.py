"""The sweep of a repair: thinner model and original side by side on the proxy inputs, half a block at a time.

Each layer is fitted on the inputs that it really gets, after all layers before it have been repaired: layers that read
the stream to the original's own outputs, those that write to it so that the stream meets the original's stream in the
student's channels. A family names the layers that read (`attention_readers`, `ffn_readers`) and its classifier heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from upvit_core.importance.criterion import Clock, Report
from upvit_core.models.transformer import AttentionTrace, FeedForwardTrace, TransformerAdapter
from upvit_core.out_of_memory import in_halves
from upvit_core.pruning.basis.slice import CutBasis
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.pruning.repair.layer_fit import LayerRepair, LinearFit
from upvit_core.records.plan import BlockPlan, PruningPlan

Rows = Sequence[tuple[Tensor, Tensor]]
"""For each layer of a pass its input (B, ..., inputs) and its target (B, ..., outputs)."""
Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs (B, ...), and which of them choose the ridges (B,)."""
AdapterT = TypeVar("AdapterT", bound=TransformerAdapter)
TraceT = TypeVar("TraceT", AttentionTrace, FeedForwardTrace)


@dataclass(frozen=True)
class Readers(Generic[TraceT]):
    """Layers of one half-block, by name, that are fitted in one pass over the inputs.

    rows: maps the student's stream and what the original computes in this half-block.
    """

    fits: Mapping[str, LinearFit]
    rows: Callable[[Tensor, TraceT], Rows]


class LayerwiseRepair(ABC, Generic[AdapterT]):
    """One sweep, which changes the student in place; it keeps both streams of all inputs, n·tokens·(D + k) numbers.

    batch_size: the usual one. Inputs whose number is `held_remainder` modulo the share held out choose the ridges.
    """

    batch_size = 50
    held_remainder = 0
    stem = "blocks."
    attention_writer, ffn_writer = "attn.proj", "mlp.fc2"

    def __init__(
        self,
        student: AdapterT,
        original: AdapterT,
        plan: PruningPlan,
        batches: Batches,
        report: Report,
        *,
        stats: ProxyStatistics | None = None,
        basis: CutBasis | None = None,
    ):
        self.student, self.original, self.plan = student, original, plan
        self.stats, self.basis = stats, basis
        self.like = next(student.model.parameters())
        self.clock = Clock(4 * plan.shape_after.depth + self.extra_passes(), "passes", report)
        self.layers: list[LayerRepair] = []
        self.ours: list[Tensor] = []
        self.theirs: list[Tensor] = []
        self.held: list[Tensor] = []
        self._reached = 0  # half-blocks that the original's streams have passed
        for inputs, held in batches:
            self.ours += _through(student.embed, [inputs])
            self.theirs += _through(original.embed, [inputs])
            self.held.append(held)

    @abstractmethod
    def attention_readers(self, number: int, block: BlockPlan) -> list[Readers[AttentionTrace]]:
        """Passes that fit the layers of the student's attention `number`, apart from its output projection."""

    @abstractmethod
    def ffn_readers(self, number: int, block: BlockPlan) -> Readers[FeedForwardTrace]:
        """The pass that fits the first layer of the student's FFN `number`."""

    def in_student_channels(self, number: int, stream: Tensor) -> Tensor:
        """The original's stream (B, T, D) in the channels (B, T, k) of the student's block `number`."""
        return stream[..., self.kept("residual")]

    def extra_passes(self) -> int:
        """Passes beside four a block, for the progress."""
        return 0

    def prepare(self) -> None:
        """Prepare both models before the first block."""

    def enter_block(self, number: int) -> None:
        """Bring both streams to where the student's block `number` takes them."""

    def read_by_projection(self, number: int, mixed: Tensor) -> Tensor:
        """The input of the student's output projection, from attention's output `mixed` (B, T, A); same shape."""
        return mixed

    def fit_heads(self) -> None:
        """Fit the classifier heads, in families that have any to fit."""

    def run(self) -> None:
        self.prepare()
        for number, block in enumerate(self.plan.blocks):
            source, ffn = block.source, block.ffn_block
            self.enter_block(number)
            self.skip_to(2 * source)
            self._fit_readers(self.attention_readers(number, block), partial(self.original.attention, source))
            own_attention = partial(self.student.attention, number)
            mixed = partial(_mixed, partial(self.read_by_projection, number))
            self._fit_writer(number, self.attention_writer, source, own_attention, mixed)
            self.ours = [self.student.attend(number, x) for x in self.ours]
            self.skip_to(2 * ffn + 1)
            self._fit_readers([self.ffn_readers(number, block)], partial(self.original.feed_forward, ffn))
            own_ffn = partial(self.student.feed_forward, number)
            self._fit_writer(number, self.ffn_writer, ffn, own_ffn, lambda trace: trace.hidden)
            self.ours = _through(partial(self.student.feed, number), self.ours)
        self.fit_heads()

    def kept(self, key: str) -> Tensor:
        return torch.tensor(self.plan.kept(key), device=self.like.device)

    def query_scale(self, number: int, block: BlockPlan) -> float:
        """The ratio of softmax scales that surgery folds into the queries."""
        before = self.plan.shape_before.blocks[block.source].head_dim
        return (self.plan.shape_after.blocks[number].head_dim / before) ** 0.5

    def skip_to(self, half: int) -> None:
        """Run the original's half-blocks before `half` that the student does not have."""
        for skipped in range(self._reached, half):
            self.theirs = _through(partial(self.original.half_block, skipped), self.theirs)
        self._reached = max(self._reached, half)

    def _fit_readers(self, passes: Sequence[Readers[TraceT]], original: Callable[[Tensor], TraceT]) -> None:
        """Fit what reads the stream, pass by pass; the original's streams then pass its half-block."""
        for readers in passes:

            def rows(x: Tensor, y: Tensor) -> tuple[Rows, Tensor]:
                trace = original(y)
                return readers.rows(x, trace), trace.stream  # noqa: B023

            streams = self._fit_along(readers.fits, rows)
        self.theirs = streams
        self._reached += 1

    def _fit_writer(
        self,
        number: int,
        layer: str,
        source: int,
        student: Callable[[Tensor], TraceT],
        read: Callable[[TraceT], Tensor],
    ) -> None:
        """Fit what writes to the stream."""

        def rows(x: Tensor, y: Tensor) -> Rows:
            trace = student(x)
            target = self.in_student_channels(number, y[:, : trace.shortcut.shape[1]])
            return [(read(trace), target - trace.shortcut)]

        self.fit({f"{self.stem}{number}.{layer}": self.fit_of(number, layer, source)}, rows)

    def fit_of(self, number: int, layer: str, source: int) -> LinearFit:
        """The fit of one layer of the student's block `number`, which comes from the original's block `source`."""
        return LinearFit.of(self.student.blocks[number].get_submodule(layer))

    def fit_head(self, name: str, read: Callable[[AdapterT, Tensor], Tensor]) -> None:
        """Fit a layer that makes the outputs, as their distribution compares them.

        read: maps an adapter and its stream after the last block to what the head reads, (B, D).
        """
        ours, theirs = (adapter.model.get_submodule(name) for adapter in (self.student, self.original))
        if not isinstance(ours, nn.Linear):  # features that nothing makes of what would be fitted
            return
        compared = self.student.compared
        ours.weight.copy_(compared(ours.weight.T).T)
        ours.bias.copy_(compared(ours.bias))

        def rows(x: Tensor, y: Tensor) -> Rows:
            return [(read(self.student, x), compared(theirs(read(self.original, y))))]

        self.fit({name: LinearFit.of(ours)}, rows)

    def repairs(self, layer: str) -> bool:
        """True if the layer of that name is fitted; others stay as the cut left them."""
        return True

    def fit(self, fits: Mapping[str, LinearFit], rows: Callable[[Tensor, Tensor], Rows]) -> None:
        """Fit some layers in one pass over both streams, and change each where that lowers its held-out error."""
        self._fit_along(fits, lambda x, y: (rows(x, y), y[:0]))

    def _fit_along(
        self, fits: Mapping[str, LinearFit], rows: Callable[[Tensor, Tensor], tuple[Rows, Tensor]]
    ) -> list[Tensor]:
        """`fit` with rows that come with a stream; the streams. A batch that does not fit into memory is halved."""
        streams, chosen = [], {name: fit for name, fit in fits.items() if self.repairs(name)}
        for x, y, held in zip(self.ours, self.theirs, self.held, strict=True):

            def compute(part: range) -> tuple[Rows, Tensor]:
                return rows(x[part.start : part.stop], y[part.start : part.stop])  # noqa: B023

            made = []
            for part, (problems, stream) in in_halves(compute, range(len(x))):
                for name, (inputs, target) in zip(fits, problems, strict=True):
                    if name in chosen:
                        chosen[name].add(inputs, target, held[part.start : part.stop])
                made.append(stream)
            streams.append(made[0] if len(made) == 1 else torch.cat(made))
        self.layers += [fit.finish(name) for name, fit in chosen.items()]
        self.clock.advance(1, next(iter(fits)))
        return streams


def _mixed(read: Callable[[Tensor], Tensor], trace: AttentionTrace) -> Tensor:
    return read(trace.mixed)


def _through(run: Callable[[Tensor], Tensor], streams: Sequence[Tensor]) -> list[Tensor]:
    """Each stream after `run`, in halves where memory ends."""
    parts = ([made for _, made in in_halves(run, stream)] for stream in streams)
    return [made[0] if len(made) == 1 else torch.cat(made) for made in parts]
