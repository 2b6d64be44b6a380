"""Progressive block pruning (METHOD.md): remove the two neighbouring half-blocks whose absence costs least, again and
again.

The letter names the candidates: 2L - 1 pairs of neighbours in A0 F0 A1 F1 …, plain (A_k, F_k) or hybrid (F_k, A_k+1).
The loop is our reading of "progressive": each candidate is scored by Eq. 1 against the ORIGINAL model's output, the
least is removed, what is left is scored again, until the target depth.

Nothing is computed twice while memory lasts: a candidate re-runs only what follows it, and a stream that passed the
same half-blocks in an earlier step (all of the new model's own pass is such a one) is taken from there. What follows
the last attention is run for the tokens that the head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upvit_core.errors import ScoresError
from upvit_core.importance import sharding
from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, origin_of, silent, standard_error
from upvit_core.importance.journal import Journal
from upvit_core.models.adapter import Adapter
from upvit_core.models.output import output_of, with_output
from upvit_core.out_of_memory import is_out_of_memory
from upvit_core.records.block_removals import (
    BlockRemovals,
    Candidate,
    Halves,
    Pair,
    Step,
    candidates,
    pair_name,
    without,
)
from upvit_core.records.shape import ModelShape


def remove_blocks(
    adapter: Adapter,
    proxy: Proxy,
    depth: int | Sequence[int],
    *,
    teacher: Adapter | None = None,
    image_batch: int | None = None,
    memory_mb: int = 1024,
    journal: Path | None = None,
    report: Report = silent,
    on_step: Callable[[BlockRemovals], None] | None = None,
) -> BlockRemovals:
    """Remove pairs of half-blocks until `depth` blocks are left; scores in nats, summed over the proxy images.

    A staged model may be given the depth of each stage; in all, every stage keeps a block at least.
    `teacher` is the original where the model was already changed (width first); None: the model itself. `image_batch`
    images are run at once (None: up to 128, as the model's size allows); `memory_mb` bounds the streams kept from step
    to step. `journal`: file to which every finished candidate is appended; a killed run, or one to a lesser depth, goes
    on from it. Of several processes, each has a part of the images. `on_step` receives the record after each removal.
    """
    if teacher is None:
        adapter = with_output(adapter, proxy)
    else:
        teacher = with_output(teacher, proxy)
    shape, whole = adapter.shape, proxy
    proxy = sharding.own_shard(proxy)
    least, removals = _targets(shape, depth)
    if image_batch is None:
        image_batch = _image_batch(shape)
    device = next(adapter.model.parameters()).device
    fingerprint: dict[str, object] = {
        "half_blocks": shape.to_dict(),
        "weights": _weight_sum(adapter),
        "teacher": _weight_sum(teacher or adapter),
        "data": proxy.digest,
        "seed": proxy.seed,
        "images": len(proxy),
        "image_batch": image_batch,
        **({"least": least} if least else {}),
    }
    batches = -(-len(proxy) // image_batch)
    left: Halves = tuple(range(2 * shape.depth))
    steps: list[Step] = []
    with Journal(journal, fingerprint) as book:
        clock, spent = Clock(_work_left(shape, left, least, 0, removals, batches), "half-blocks", report), 0
        clock.skip(sum(_cost_of(name, shape.depth) for name in book.finished))
        work = _Work(adapter, teacher, memory_mb * 2**20)
        for number in range(removals):
            pairs = candidates(shape, left, least)
            mine = _pieces(number, left, pairs, batches)
            clock.expect(spent + _work_left(shape, left, least, number, removals, batches))
            spent += sum(piece.cost for piece in mine)
            if any(piece.name not in book.finished for piece in mine):
                with frozen(adapter.model), torch.inference_mode():
                    for batch, (images, _) in enumerate(proxy.batches(image_batch, device)):
                        todo = [piece for piece in mine if piece.batch == batch and piece.name not in book.finished]
                        scored = work.scores(batch, images, left, [pairs[piece.index] for piece in todo])
                        for piece, kl in zip(todo, scored, strict=True):
                            sums = kl.sum().cpu().numpy(), kl.square().sum().cpu().numpy()
                            book.append(piece.name, *sums)
                            book.finished[piece.name] = sums
                            what = f"removal {number + 1} of {removals}: {pair_name(pairs[piece.index])}"
                            clock.advance(piece.cost, f"{what} on images {batch * image_batch}…")
            steps.append(_step(mine, book, pairs, len(whole), device))
            left = without(left, steps[-1].removed)
            work.forget(steps[-1].removed)
            about = origin_of(whole) | {"seconds": clock.seconds, "least": least}
            record = BlockRemovals(source_shape=shape.to_dict(), **about, steps=tuple(steps))
            if on_step is not None:
                on_step(record)
    return record


def _targets(shape: ModelShape, depth: int | Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Blocks that each stage keeps (empty: at least one) and the number of removals. Raises ScoresError."""
    stages = len(shape.depths)
    if isinstance(depth, int) or len(depth) == 1 == stages:
        total = depth if isinstance(depth, int) else depth[0]
        if not stages <= total < shape.depth:
            raise ScoresError(
                f"{shape.name} has {shape.depth} blocks; a depth of {stages} to {shape.depth - 1} can be reached, not "
                f"{total}."
            )
        return (), shape.depth - total
    least = tuple(depth)
    if len(least) != stages or any(not 1 <= new <= old for new, old in zip(least, shape.depths, strict=False)):
        have = ", ".join(map(str, shape.depths))
        raise ScoresError(f"{shape.name} has stages of {have} blocks; give as many for each, at least 1, not {depth}.")
    if sum(least) == shape.depth:
        raise ScoresError(f"{shape.name} has these depths already; give a lesser one.")
    return least, shape.depth - sum(least)


def _pieces(step: int, left: Halves, pairs: Sequence[Pair], batches: int) -> list[_Piece]:
    places = [left.index(pair[0]) for pair in pairs]
    return [
        _Piece(step, batch, index, place, len(left)) for batch in range(batches) for index, place in enumerate(places)
    ]


def _work_left(shape: ModelShape, left: Halves, least: Sequence[int], step: int, removals: int, batches: int) -> int:
    """Half-blocks still to run; which pairs will go is not known, so the first of each step is taken to."""
    total = 0
    for number in range(step, removals):
        pairs = candidates(shape, left, least)
        total += sum(piece.cost for piece in _pieces(number, left, pairs, batches))
        left = without(left, pairs[0])
    return total


def _cost_of(name: str, depth: int) -> int:
    """The cost of a finished piece, from its name."""
    step, _, place = map(int, name.split("/"))
    return 2 * (depth - step) - 1 - place


def _image_batch(shape: ModelShape) -> int:
    """Images whose streams before every half-block take half a gigabyte, at most 128."""
    return min(128, max(1, 2**29 // (2 * shape.depth * 4 * shape.num_tokens * max(shape.embed_dims))))


def _weight_sum(adapter: Adapter) -> float:
    return sum(float(p.detach().double().abs().sum()) for p in adapter.model.parameters())


def _step(pieces: list[_Piece], book: Journal, pairs: tuple[Pair, ...], images: int, device: torch.device) -> Step:
    """The scores of one step over the images of all processes, and the pair that goes."""
    total, squares = sums = np.zeros((2, len(pairs)))
    for piece in pieces:
        kl, kl_squared = book.finished[piece.name]
        total[piece.index] += kl
        squares[piece.index] += kl_squared
    tensor = torch.from_numpy(sums).to(device)
    sharding.add_up(tensor)
    total, squares = tensor.cpu().numpy()
    errors = standard_error(total, squares, images)
    scored = tuple(
        Candidate(halves=pair, kl=float(kl), stderr=float(error) if images > 1 else None)
        for pair, kl, error in zip(pairs, total, errors, strict=True)
    )
    return Step(candidates=scored, removed=scored[int(total.argmin())].halves)


@dataclass(frozen=True)
class _Piece:
    """One candidate of one step on one batch of images: its number, and its place in the sequence of half-blocks."""

    step: int
    batch: int
    index: int
    place: int
    halves: int

    @property
    def name(self) -> str:
        return f"{self.step}/{self.batch}/{self.place}"

    @property
    def cost(self) -> int:
        """Half-blocks to run: what follows the candidate, and one of the model's own pass."""
        return self.halves - 1 - self.place


class _Work:
    """Runs half-blocks; remembers the original's output, and streams by batch and the half-blocks they passed."""

    def __init__(self, adapter: Adapter, teacher: Adapter | None, memory: int):
        self.adapter, self.teacher, self.memory_left = adapter, teacher, memory
        self.output = output_of(teacher or adapter)
        self._references: dict[int, Tensor] = {}
        self._streams: dict[tuple[int, Halves], Tensor] = {}

    def scores(self, batch: int, images: Tensor, left: Halves, pairs: list[Pair]) -> Iterator[Tensor]:
        """KL (B,) to the original, in float64 nats, of the model `left` without each of `pairs`."""
        if not pairs:
            return
        try:
            own = self._own_pass(batch, images, left)
            if batch not in self._references:
                self._references[batch] = self._original(batch, images, own)
            for pair in pairs:
                place = left.index(pair[0])
                logits = self._logits(batch, without(left, pair), place, own[place])
                yield self.output.kl(self._references[batch], logits)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ScoresError(
                f"{len(images)} images at once do not fit into memory; lower image_batch or memory_mb."
            ) from error

    def forget(self, removed: Pair) -> None:
        """Drop the streams that passed what no later model has."""
        for key in [key for key in self._streams if set(removed) & set(key[1])]:
            self.memory_left += self._streams.pop(key).nbytes

    def _original(self, batch: int, images: Tensor, own: list[Tensor]) -> Tensor:
        if self.teacher is not None:
            with frozen(self.teacher.model):
                return self.output.reference(self.teacher.run_from(0, self.teacher.embed(images)))
        whole = tuple(range(2 * self.adapter.shape.depth))
        if len(own) < len(whole) - 1:
            own = self._own_pass(batch, images, whole)
        return self.output.reference(self._logits(batch, whole, len(own) - 1, own[-1]))

    def _own_pass(self, batch: int, images: Tensor, left: Halves) -> list[Tensor]:
        """The streams before each half-block but the last, (B, N, D) each."""
        x = self._streams.get((batch, ()))
        if x is None:
            x = self._keep(batch, (), self.adapter.embed(images))
        streams = [x]
        for place in range(len(left) - 2):
            streams.append(self._next(batch, left[: place + 1], streams[-1]))
        return streams

    def _logits(self, batch: int, path: Halves, place: int, x: Tensor) -> Tensor:
        """Logits (B, classes) at the end of `path`, from the stream before its half-block number `place`."""
        for end in range(len(path) - 2, place, -1):
            kept = self._streams.get((batch, path[:end]))
            if kept is not None:
                place, x = end, kept
                break
        for end in range(place, len(path) - 2):
            x = self._next(batch, path[: end + 1], x)
        for at in range(max(place, len(path) - 2), len(path)):
            x = self.adapter.run_half_block(path[at], x, previous=path[at - 1] if at else None, last=True)
        return self.adapter.after_half_block(path[-1], x)

    def _next(self, batch: int, path: Halves, x: Tensor) -> Tensor:
        kept = self._streams.get((batch, path))
        if kept is not None:
            return kept
        previous = path[-2] if len(path) > 1 else None
        return self._keep(batch, path, self.adapter.run_half_block(path[-1], x, previous=previous))

    def _keep(self, batch: int, path: Halves, x: Tensor) -> Tensor:
        if x.nbytes <= self.memory_left:
            self._streams[batch, path] = x
            self.memory_left -= x.nbytes
        return x
