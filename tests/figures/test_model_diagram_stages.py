"""Figures of a staged model: rows of every stage and block, whatever their widths, and the drawing of the pyramid."""

import numpy as np
import plotly.graph_objects as go
import pytest

from upvit_core.figures.curves import kept_curve
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import draw_kept_strips, heatmap
from upvit_core.figures.model_diagram import draw_model
from upvit_core.figures.score_grid import channel_at, find, picture, score_table
from upvit_core.figures.theme import DARK, LIGHT
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.scores import ImportanceScores, expected_widths

SHAPE = pvt_shape("b0")


@pytest.fixture(scope="module")
def scores() -> ImportanceScores:
    rng = np.random.default_rng(0)
    values = {key: rng.lognormal(-2, 1.5, width) for key, width in expected_widths(SHAPE).items()}
    errors = {key: 0.1 * value for key, value in values.items()}
    return ImportanceScores(values=values, stderr=errors, criterion="kl", unit="nats", shape=SHAPE, images=10)


def test_every_component_has_a_row_for_each_of_its_places(scores: ImportanceScores) -> None:
    plan = plan_uniform(scores, Ratios.equal(0.5))
    rows = {component: picture(scores, component, plan) for component in SHAPE.components}
    assert {name: p.blocks for name, p in rows.items()} == {
        "residual": (0, 1, 2, 3), "attention": tuple(range(8)), "ffn": tuple(range(8)), "reduction": tuple(range(6)),
    }  # fmt: skip
    for component, p in rows.items():
        for row, place in enumerate(p.blocks):
            values = scores.values[f"{component}.{place}"]
            known = p.values[row][~np.isnan(p.values[row])]
            assert len(known) == len(values)
            if p.groups == 1 and p.step == 1:
                np.testing.assert_allclose(10.0**known, np.sort(values)[::-1], rtol=1e-5)
                assert channel_at(p, 0, row) == (place, int(np.argmax(values)))
                assert find(p, place, int(np.argmax(values))) == (0.0, row)
            share = 1 - p.removed[row][~np.isnan(p.values[row])].mean()
            assert share == pytest.approx(0.5)


def test_figures_are_valid(scores: ImportanceScores) -> None:
    plan = plan_uniform(scores, Ratios(0.5, 0.5, 0.5, 0.25))
    charts = [
        draw_kept_strips(scores, plan, LIGHT),
        draw_model(SHAPE, DARK),
        draw_model(SHAPE, LIGHT, plan.shape_after),
    ]
    for component in SHAPE.components:
        charts.append(heatmap(scores, component, plan, LIGHT)[0])
        charts.append(heatmap(scores, component, plan, DARK, "position", block=1)[0])
        charts.append(kept_curve(scores, component, plan, LIGHT))
    charts.append(draw_head_merging(scores, plan, 7, LIGHT))
    for chart in charts:
        go.Figure(chart.figure.to_dict())
        assert len(chart.alt) > 30
        assert len({len(column) for column in chart.table().values()}) == 1
    assert "Reduction: 75% kept in every block" in draw_kept_strips(scores, plan, LIGHT).alt


def test_the_drawing_is_to_scale() -> None:
    shapes = draw_model(SHAPE, LIGHT).figure.to_dict()["layout"]["shapes"]
    bands = [s["y1"] - s["y0"] for s in shapes if s.get("fillcolor") == "#0072B2"]
    np.testing.assert_allclose(np.array(bands) / bands[0], np.array(SHAPE.embed_dims) / SHAPE.embed_dims[0])


def test_the_table_lists_every_channel_once(scores: ImportanceScores) -> None:
    table = score_table(scores)
    assert len(table["score"]) == sum(group.width for group in SHAPE.groups)
    rows = set(zip(table["component"].tolist(), table["block"].tolist(), table["channel"].tolist(), strict=True))
    assert len(rows) == len(table["score"])
