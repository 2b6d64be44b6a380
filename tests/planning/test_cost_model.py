"""The polynomial of widths against the counts of whole shapes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.latency import TEXT
from tests.support.planning import SHAPE
from upvit_core.planning.cost_model import COUNTS, CostModel, costs_of
from upvit_core.records.known_shapes import deit_shape, pvt_shape
from upvit_core.records.shape import BlockShape, ModelShape

UNEVEN = replace(SHAPE, distilled=True, layer_scale=True, blocks=(BlockShape(6, 24, 96), BlockShape(3, 18, 40)))
SHAPES = {
    "DeiT-T": deit_shape("tiny"), "uneven": UNEVEN, "GPT-2": TEXT, "PVTv2-B0": pvt_shape("b0"),
    "PVTv2-B2": pvt_shape("b2", img_size=(64, 64), num_classes=10),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_width_counts_as_in_the_whole_shape(shape: ModelShape, name: str) -> None:
    count, rng = COUNTS[name], np.random.default_rng(0)
    model = CostModel(count, shape)
    for _ in range(20):
        widths = {group.key: int(rng.integers(1, group.width + 1)) for group in shape.groups}
        narrow = count(shape.with_widths(widths))
        assert model.at(widths) == narrow
        for group in shape.groups:
            wider = count(shape.with_widths(widths | {group.key: widths[group.key] + 1}))
            assert model.slope(group.key, widths) == wider - narrow


def test_widths_broadcast() -> None:
    model = CostModel(COUNTS["macs"], SHAPE)
    D, A, H = np.arange(1, 5)[:, None, None], np.arange(6, 9)[None, :, None], np.array([7, 90])
    whole = model.at({"residual": D, "attention.0": A, "ffn.0": H, "attention.1": A, "ffn.2": 5})
    assert whole.shape == (4, 3, 2)
    alone = {"residual": 3, "attention.0": 7, "ffn.0": 90, "attention.1": 7, "ffn.2": 5}
    assert whole[2, 1, 1] == model.at(alone)
    assert model.slope("attention.1", {"residual": D[:, 0, 0]})[3] == model.slope("attention.1", {"residual": 4})


def test_costs_of_a_shape() -> None:
    class TwoMilliseconds:
        def of(self, shape: ModelShape) -> float:
            return 2.0

    counts = {name: count(SHAPE) for name, count in COUNTS.items()}
    assert costs_of(SHAPE, None) == counts
    assert costs_of(SHAPE, TwoMilliseconds()) == counts | {"latency_ms": 2.0}
