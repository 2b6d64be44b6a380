"""Time of a forward pass, estimated from a calibration of this device. Imports no torch, so sliders can call it.

A pass is put together from what it runs: the embedding, and in every block two LayerNorms, linear layers, attention,
GELU and two additions, then the last norm and the head; in a PVTv2 also each stage's patch embedding, the spatial
reduction of keys and values, and the depthwise convolution. Nothing here assumes that time goes with MACs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from upvit_core.errors import CalibrationError
from upvit_core.profiling.calibration import Calibration, geometry, scope
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape


class _Pass:
    """A forward pass of models like `shape` at one batch size."""

    def __init__(self, shape: ModelShape, batch: int, calibration: Calibration):
        if scope(shape) != calibration.scope:
            raise CalibrationError(
                f"This calibration is for {calibration.scope or 'plain ViTs'}, and {shape.name} is none of these; run "
                "`calibrate --model` with it."
            )
        if batch < 1:
            raise CalibrationError(f"A batch holds at least one image, not {batch}.")
        self._shape, self._batch, self._calibration = shape, batch, calibration

    def of(self, shape: ModelShape) -> float:
        """Milliseconds of a whole shape, which differs from the one given in widths and depth alone."""
        return self.of_ends(shape) + sum(self.of_block(shape, b) for b in range(shape.depth))

    def of_ends(self, shape: ModelShape) -> float:
        """Milliseconds of all but the blocks."""
        raise NotImplementedError

    def of_block(self, shape: ModelShape, number: int) -> float:
        """Milliseconds of one block."""
        raise NotImplementedError


class Latency(_Pass):
    """Milliseconds of a forward pass of `shape`'s kind at one batch size, in parts; widths are arguments.

    Fits `planning.budget.LatencyParts`. Raises CalibrationError where the calibration is of other models.
    """

    def __init__(self, shape: ModelShape, batch: int, calibration: Calibration):
        super().__init__(shape, batch, calibration)
        self._rows = batch * shape.num_tokens

    def of_ends(self, shape: ModelShape) -> float:
        return float(self.fixed(np.array([shape.embed_dim]))[0])

    def of_block(self, shape: ModelShape, number: int) -> float:
        D, block = np.array([shape.embed_dim]), shape.blocks[number]
        attention = self.attention(D, block.num_heads, np.array([block.attention]))
        return float(attention[0, 0] + self.ffn(D, np.array([block.ffn]))[0, 0])

    def fixed(self, embed_dim: np.ndarray) -> np.ndarray:
        """Embedding, last norm and head; (n,) for residual widths (n,)."""
        shape, linear, norm = self._shape, self._calibration.linear, self._calibration.grids["norm"]
        D = np.asarray(embed_dim, float)
        heads = linear(self._batch, D, shape.num_classes) * (1 + shape.distilled)
        return 1e3 * (self._embedding(D) + norm.at(self._rows, D) + heads)

    def _embedding(self, D: np.ndarray) -> np.ndarray:
        known = self._calibration.embeddings.get(geometry(self._shape))
        if known is not None:
            return known.at(self._batch, D)
        shape, grids = self._shape, self._calibration.grids
        patches, pixels = self._batch * shape.num_patches, shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
        return self._calibration.linear(patches, pixels, D) + 3 * grids["add"].at(self._rows, D)

    def attention(self, embed_dim: np.ndarray, heads: int, widths: np.ndarray) -> np.ndarray:
        """The attention half of one block, (n, m) for residual widths (n,) and attention widths (m,)."""
        known, weights = self._calibration, self._calibration.weights
        D, A = np.asarray(embed_dim, float)[:, None], np.asarray(widths, float)[None, :]
        seconds = weights["linear"] * (known.linear(self._rows, D, 3 * A) + known.linear(self._rows, A, D))
        inner = known.attention(self._batch * heads, self._shape.num_tokens, A / heads)
        return 1e3 * (seconds + weights["attention"] * inner + self._norm_and_add(D))

    def ffn(self, embed_dim: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """The FFN half of one block, (n, m)."""
        known, weights = self._calibration, self._calibration.weights
        D, H = np.asarray(embed_dim, float)[:, None], np.asarray(widths, float)[None, :]
        seconds = weights["linear"] * (known.linear(self._rows, D, H) + known.linear(self._rows, H, D))
        return 1e3 * (seconds + weights["gelu"] * known.grids["gelu"].at(self._rows, H) + self._norm_and_add(D))

    def _norm_and_add(self, D: np.ndarray) -> np.ndarray:
        grids, weights = self._calibration.grids, self._calibration.weights
        scale = 1 + 0.5 * self._shape.layer_scale
        adding = weights["add"] * grids["add"].at(self._rows, D) * scale
        return weights["norm"] * grids["norm"].at(self._rows, D) + adding + weights["block"] / 2


class LanguageLatency(Latency):
    """A language model's: every token has its logits, and the embedding is looked up."""

    def fixed(self, embed_dim: np.ndarray) -> np.ndarray:
        """Embedding, last norm, and the output layer; (n,) for residual widths (n,)."""
        D = np.asarray(embed_dim, float)
        return 1e3 * (self._embedding(D) + self._calibration.grids["head"].at(self._rows, D))


class PyramidLatency(_Pass):
    """Milliseconds of a forward pass of a PVTv2 at one batch size, in parts; widths are arguments that broadcast.

    Fits `planning.budget_stages.StagedLatency`. Raises CalibrationError where the calibration is of other models.
    """

    def __init__(self, shape: ModelShape, batch: int, calibration: Calibration):
        super().__init__(shape, batch, calibration)
        firsts = [shape.first_block(stage) for stage in range(len(shape.stages))]
        self._rows = [batch * shape.tokens_at(block) for block in firsts]
        self._keys = [batch * shape.keys_at(block) for block in firsts]

    def of_ends(self, shape: ModelShape) -> float:
        return float(self.fixed(shape.embed_dims))

    def of_block(self, shape: ModelShape, number: int) -> float:
        stage, block = shape.stage_of(number), shape.blocks[number]
        D = shape.embed_dims[stage]
        attention = self.attention(stage, D, block.num_heads, block.attention, block.reduction)
        return float(attention + self.ffn(stage, D, block.ffn))

    def fixed(self, embed_dims: Sequence[ArrayLike]) -> np.ndarray:
        """Patch embeddings and last norms of all stages, and the head, for residual widths by stage."""
        known = self._calibration
        before: ArrayLike = self._shape.in_chans
        seconds = known.linear(self._batch, embed_dims[-1], self._shape.num_classes)
        for stage, width in enumerate(embed_dims):
            seconds = seconds + known.grids[f"opening.{stage}"].at(self._batch, before, width)
            before = width
        return 1e3 * seconds

    def attention(
        self, stage: int, embed_dim: ArrayLike, heads: int, attention: ArrayLike, reduction: ArrayLike
    ) -> np.ndarray:
        """The attention half of a block of a stage; reduction: 0 where keys and values are not reduced."""
        known, weights = self._calibration, self._calibration.weights
        D, A, R = (np.asarray(width, float) for width in (embed_dim, attention, reduction))
        rows, keys, source = self._rows[stage], self._keys[stage], np.where(R > 0, R, D)
        linear = known.linear(rows, D, A) + known.linear(keys, source, 2 * A) + known.linear(rows, A, D)
        inner = known.grids[f"attention.{stage}"].at(self._batch * heads, A / heads)
        inner = inner * known.ladders["head_dim"].at(A / heads)
        seconds = weights["linear"] * linear + weights["attention"] * inner + self._norm_and_add(stage, D)
        if f"reduction.{stage}" in known.grids:
            seconds = seconds + weights["reduction"] * known.grids[f"reduction.{stage}"].at(self._batch, D, source)
        return 1e3 * seconds

    def ffn(self, stage: int, embed_dim: ArrayLike, widths: ArrayLike) -> np.ndarray:
        """The FFN half of a block of a stage, with its depthwise convolution."""
        known, weights, rows = self._calibration, self._calibration.weights, self._rows[stage]
        D, H = np.asarray(embed_dim, float), np.asarray(widths, float)
        seconds = weights["linear"] * (known.linear(rows, D, H) + known.linear(rows, H, D))
        seconds = seconds + weights["depthwise"] * known.grids[f"depthwise.{stage}"].at(self._batch, H)
        return 1e3 * (seconds + self._norm_and_add(stage, D))

    def _norm_and_add(self, stage: int, D: np.ndarray) -> np.ndarray:
        grids, weights, rows = self._calibration.grids, self._calibration.weights, self._rows[stage]
        both = weights["norm"] * grids["norm"].at(rows, D) + weights["add"] * grids["add"].at(rows, D)
        return both + weights["block"] / 2


def latency_of(shape: ModelShape, batch: int, calibration: Calibration) -> Latency | PyramidLatency:
    """The estimate for models like `shape`. Raises CalibrationError where the calibration is of other models."""
    estimate: Latency | PyramidLatency = load(shape.architecture.latency)(shape, batch, calibration)
    return estimate


def estimate_latency(shape: ModelShape, batch: int, calibration: Calibration) -> float:
    """Milliseconds of one forward pass of `batch` images, estimated."""
    return latency_of(shape, batch, calibration).of(shape)


def estimate_speed_up(before: ModelShape, after: ModelShape, batch: int, calibration: Calibration) -> float:
    """Estimated time of the first shape over that of the second; `calibration.error` has the error."""
    return estimate_latency(before, batch, calibration) / estimate_latency(after, batch, calibration)
