"""The picture of depth shows the record's own numbers, and what is left."""

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.errors import PlanError
from upvit_core.figures.blocks import depth_curve, draw_half_blocks
from upvit_core.figures.theme import DARK, LIGHT
from upvit_core.importance.blocks import remove_blocks
from upvit_core.models.build import adapt


@pytest.fixture(scope="module")
def record():
    return remove_blocks(adapt(*tiny("3 heads, 5 blocks")), TensorProxy(images(3)), 2)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_shows_every_candidate_of_the_step(record, depth: int, theme) -> None:
    chart = draw_half_blocks(record, depth, theme)
    figure = go.Figure(chart.figure)
    step = record.steps[0 if depth == 5 else 4 - depth]
    marks = [trace for trace in figure.data if trace.mode == "markers" and trace.customdata is not None]
    shown = {name: kl for trace in marks for name, (kl, _) in zip(trace.text, trace.customdata, strict=True)}
    assert shown == {c.name: pytest.approx(c.kl / 3) for c in step.candidates}
    symbols = {name: trace.marker.symbol for trace in marks for name in trace.text}
    assert all((symbols[c.name] == "diamond") == c.name.startswith("F") for c in step.candidates)
    words = " ".join(a.text for a in figure.layout.annotations)
    left = record.remaining(depth)
    gone = [half for half in range(10) if half not in left]
    assert sum("removed" in a.text and "cost" not in a.text for a in figure.layout.annotations) == len(gone)
    hybrids = [(a, f) for a, f in zip(left[::2], left[1::2], strict=True) if f != a + 1]
    assert words.count("hybrid") == len(hybrids)
    for a, f in hybrids:
        assert f"A{a // 2} + F{f // 2}" in words
        assert f"A{a // 2} with F{f // 2}" in chart.alt
    assert sum(shape.line.dash == "dash" for shape in figure.layout.shapes) == len(hybrids)


def test_table_and_curve_hold_all_steps(record) -> None:
    table = draw_half_blocks(record, 5, LIGHT).table()
    assert len(table["pair"]) == 9 + 7 + 5
    removed = table["kl_mean_nats"][table["removed"]]
    chart = depth_curve(record, 3, LIGHT)
    curve = go.Figure(chart.figure).data[0]
    np.testing.assert_allclose(10 ** np.asarray(curve.y, float), removed, rtol=1e-6)
    assert list(curve.x) == [4, 3, 2]
    np.testing.assert_allclose(chart.table()["kl_mean_nats"], [step.kl / 3 for step in record.steps])


def test_a_depth_that_was_not_reached_is_refused(record) -> None:
    with pytest.raises(PlanError, match="from 5 to 2 blocks, not to 1"):
        draw_half_blocks(record, 1, LIGHT)
