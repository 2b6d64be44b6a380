"""Scores and a cost of time for tests of planning."""

from dataclasses import replace

import numpy as np

from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, ModelShape

SHAPE = replace(deit_shape("tiny"), name="small", embed_dim=24, blocks=(BlockShape(6, 24, 96),) * 3)


def scores(shape=SHAPE, seed: int = 0, images: int = 10) -> ImportanceScores:
    rng = np.random.default_rng(seed)
    return ImportanceScores(
        values={key: rng.uniform(0.2, 2) * rng.exponential(size=n) for key, n in expected_widths(shape).items()},
        criterion="kl",
        unit="nats",
        shape=shape,
        images=images,
    )


class Steps:
    """A latency with stairs and a bow, as devices have."""

    def fixed(self, D: np.ndarray) -> np.ndarray:
        return 1 + 0.1 * D

    def attention(self, D: np.ndarray, heads: int, widths: np.ndarray) -> np.ndarray:
        return 0.2 + 0.05 * np.ceil(D / 2)[:, None] * widths + 0.01 * widths**2 + 0.1 * heads

    def ffn(self, D: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return 0.3 + 0.04 * D[:, None] * np.ceil(widths / 3)

    def of(self, shape: ModelShape) -> float:
        D = np.array([shape.embed_dim])
        halves = sum(
            self.attention(D, b.num_heads, np.array([b.attention])) + self.ffn(D, np.array([b.ffn]))
            for b in shape.blocks
        )
        return float((self.fixed(D) + halves)[0, 0])
