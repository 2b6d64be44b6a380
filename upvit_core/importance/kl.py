"""`kl`: Eq. 1 exactly. s_c = Σ_i KL(q_i || p_i), p_i the output of the model without channel c.

Nothing is computed twice: teacher logits once, the input of every block once; a channel of block b re-runs only what
follows it; removing an FFN channel subtracts one outer product; removing an attention channel recomputes one head;
in the last block only the tokens that the classifier reads are run. Channels are batched together.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upvit_core.importance.criterion import (
    Clock,
    ImageSums,
    Proxy,
    Report,
    Request,
    autocast,
    frozen,
    scored_on,
    silent,
)
from upvit_core.importance.journal import Journal
from upvit_core.models.adapter import Adapter
from upvit_core.models.output import output_of, with_output
from upvit_core.models.transformer import BlockTrace
from upvit_core.out_of_memory import in_halves
from upvit_core.profiling.macs import half_block_macs
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape

PIECE_MACS = {"cpu": 1e11, "cuda": 2e13}
"""Work between two reports, by device: a few seconds, so that a cancel or a kill loses no more."""


@dataclass(frozen=True)
class KL:
    """Settings of the exact score.

    image_batch: images whose block inputs are held at once (None: up to 32, as long as one pass over them takes no more
    than seconds, so that a cancel is soon obeyed). memory_mb: bound on the working set of one batch of
    (channel, image) pairs (None: what fits the caches of a CPU, or 2 GB of a GPU); a batch that still does not fit is
    halved and retried. journal: file to which every finished piece is appended, so that a killed run goes on where it
    stopped.
    """

    image_batch: int | None = None
    memory_mb: int | None = None
    journal: Path | None = None
    channels: dict[str, tuple[int, ...]] | None = None
    precision: str = "float32"
    name: str = "kl"

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """Scores of all channels, or of `channels` by key (the others get 0); nats summed over the proxy images."""
        adapter = with_output(adapter, proxy)
        device = next(adapter.model.parameters()).device
        shape, limit = adapter.shape, PIECE_MACS.get(device.type, PIECE_MACS["cuda"])
        size = self.image_batch or _image_batch(shape, limit)
        starts = range(0, len(proxy), size)
        with Journal(self.journal, self._fingerprint(adapter, proxy, size)) as journal:
            totals = {key: n * _suffix_macs(shape, key) * len(proxy) for key, n in self._counts(shape).items()}
            clock = Clock(sum(totals.values()), "MACs", report, totals=totals)
            if journal.finished:
                for number, first in enumerate(starts):
                    for piece in self._pieces(shape, number, min(size, len(proxy) - first), limit):
                        if piece.name in journal.finished:
                            clock.skip(piece.cost, piece.key)
            sums = ImageSums()
            for key, width in expected_widths(shape).items():
                sums.add_sums(key, np.zeros(width), np.zeros(width))
            with frozen(adapter.model), torch.inference_mode(), autocast(device, self.precision):
                for number, (images, _) in enumerate(proxy.batches(size, device)):
                    work: _ImageBatch | None = None
                    for piece in self._pieces(shape, number, len(images), limit):
                        if piece.name in journal.finished:
                            total, squares = journal.finished[piece.name]
                        else:
                            work = work or _ImageBatch(adapter, images)
                            kl = self._score(work, piece)  # (C, B)
                            total, squares = kl.sum(1).cpu().numpy(), kl.square().sum(1).cpu().numpy()
                            journal.append(piece.name, total, squares)
                            clock.advance(piece.cost, f"{piece.key} on images {number * size}…", piece.key)
                        self._add(sums, piece, shape, total, squares)
        scores = scored_on(proxy, clock, sums.total, self.name, shape)
        return replace(scores, stderr=sums.standard_errors(len(proxy)))

    def _fingerprint(self, adapter: Adapter, proxy: Proxy, image_batch: int) -> dict[str, object]:
        weights = sum(float(p.detach().double().abs().sum()) for p in adapter.model.parameters())
        data = {"data": proxy.digest, "seed": proxy.seed, "images": len(proxy)}
        setting = {"image_batch": image_batch, "precision": self.precision}
        return {"weights": weights, "shape": adapter.shape.to_dict(), **data, **setting}

    def _counts(self, shape: ModelShape) -> dict[str, int]:
        """The number of channels of each key to be scored."""
        widths = expected_widths(shape)
        return widths if self.channels is None else {key: len(self.channels.get(key, ())) for key in widths}

    def _pieces(self, shape: ModelShape, batch: int, images: int, limit: float) -> list[_Piece]:
        """The work on one batch of images, each piece at most `limit` MACs or one channel.

        Keys take turns, all at the same share of their channels, so that the time left is known early.
        """
        placed: list[tuple[float, int, _Piece]] = []
        for order, (key, width) in enumerate(expected_widths(shape).items()):
            chosen = np.arange(width) if self.channels is None else np.asarray(self.channels.get(key, ()), int)
            cost = _suffix_macs(shape, key) * images
            step = max(1, int(limit // max(cost, 1)))
            for first in range(0, len(chosen), step):
                part = chosen[first : first + step]
                piece = _Piece(batch, key, tuple(int(c) for c in part), cost * len(part))
                placed.append((first / len(chosen), order, piece))
        return [piece for *_, piece in sorted(placed, key=lambda entry: entry[:2])]

    def _score(self, work: _ImageBatch, piece: _Piece) -> Tensor:
        """KL of each channel of the piece on each image, (C, B), float64 nats."""
        shape, B = work.adapter.shape, len(work.inputs[0])
        row_bytes = max(
            4
            * shape.tokens_at(b)
            * (6 * shape.embed_dims[shape.stage_of(b)] + block.ffn + 4 * shape.channels_in(block))
            + 8 * shape.tokens_at(b) * shape.keys_at(b) * shape.heads_in(block)
            for b, block in enumerate(shape.blocks)
        )
        device = work.inputs[0].device
        memory_mb = self.memory_mb if self.memory_mb is not None else (32 if device.type == "cpu" else 2048)
        group = max(1, memory_mb * 2**20 // (row_bytes * B))
        channels = torch.tensor(piece.channels, device=device)
        return torch.cat([kl for _, kl in in_halves(lambda part: work.removal_kl(piece.key, part), channels, group)])

    @staticmethod
    def _add(sums: ImageSums, piece: _Piece, shape: ModelShape, total: np.ndarray, squares: np.ndarray) -> None:
        width = expected_widths(shape)[piece.key]
        placed = np.zeros((2, width))
        placed[:, list(piece.channels)] = total, squares
        sums.add_sums(piece.key, placed[0], placed[1])


def make_kl(request: Request) -> KL:
    return KL(journal=request.journal, precision=request.precision)


@dataclass(frozen=True)
class _Piece:
    batch: int
    key: str
    channels: tuple[int, ...]
    cost: float

    @property
    def name(self) -> str:
        check = zlib.crc32(np.asarray(self.channels, np.int64).tobytes())
        return f"{self.batch}/{self.key}/{self.channels[0]}-{self.channels[-1]}/{len(self.channels)}/{check:08x}"


def _image_batch(shape: ModelShape, limit: float) -> int:
    return int(min(32, max(1, limit // max(_suffix_macs(shape, group.key) for group in shape.groups))))


def _suffix_macs(shape: ModelShape, key: str) -> float:
    """MACs of re-running what follows the removal of one channel of `key`, per image."""
    blocks = [sum(half_block_macs(shape, b)) for b in range(shape.depth)]
    last = shape.depth - 1
    if shape.head_tokens:
        blocks[last] = 2 * shape.num_tokens * shape.embed_dim * shape.channels_in(shape.blocks[last])
    component, _, place = key.partition(".")
    if component == "residual":
        return float(sum(blocks[shape.first_block(int(place or 0)) :]))
    b = int(place)
    own, N, D = shape.blocks[b], shape.tokens_at(b), shape.embed_dims[shape.stage_of(b)]
    rows = shape.head_tokens or N if b == last else N
    cost = float(sum(blocks[b + 1 :])) + rows * D
    if component == "attention":
        cost += rows * (2 * D * own.ffn + 3 * shape.keys_at(b) * own.head_dim)
    if component == "reduction":
        cost += (
            rows * 2 * D * own.ffn + 2 * shape.keys_at(b) * own.attention * (own.reduction + N) + N * D * own.attention
        )
    return cost


class _ImageBatch:
    """One batch of images: the teacher's answers and block inputs, computed once."""

    def __init__(self, adapter: Adapter, images: Tensor):
        self.adapter, self.output = adapter, output_of(adapter)
        x = adapter.embed(images)
        self.inputs = [x]
        for b in range(adapter.shape.depth - 1):
            x = adapter.run_block(b, x)
            self.inputs.append(x)
        self.reference = self.output.reference(adapter.run_from(adapter.shape.depth - 1, x))
        self._traced: tuple[int, BlockTrace] | None = None

    def _trace(self, block: int) -> BlockTrace:
        if self._traced is None or self._traced[0] != block:
            self._traced = (block, self.adapter.trace(block, self.inputs[block]))
        return self._traced[1]

    def removal_kl(self, key: str, channels: Tensor) -> Tensor:
        """(C, B) nats for C channels of one component."""
        block = self.adapter.first_block(key)
        trace = None if key.startswith("residual") else self._trace(block)
        changed = self.adapter.logits_without(key, self.inputs[block], channels, trace)
        return self.output.kl(self.reference, changed)
