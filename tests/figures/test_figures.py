"""Every figure is a valid plotly figure, says what it shows, and draws the numbers that an independent count gives."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from upvit_core.figures.agreement import rank_against_rank
from upvit_core.figures.channel import before_after, kl_by_image, rank_chart
from upvit_core.figures.contours import Axis, Surface, draw_map
from upvit_core.figures.curves import kept_curve, plan_share, share_kept
from upvit_core.figures.head_merging import cividis, draw_head_merging
from upvit_core.figures.heatmaps import draw_kept_strips, heatmap
from upvit_core.figures.kl_sum import kl_sum, kl_terms
from upvit_core.figures.learning_curve import plot_learning_curve
from upvit_core.figures.model_diagram import draw_model
from upvit_core.figures.parallel import Outcome, draw_parallel
from upvit_core.figures.pareto import Line, Point, plot_pareto
from upvit_core.figures.plan_difference import draw_plan_difference
from upvit_core.figures.published import PUBLISHED
from upvit_core.figures.removal import attention_pair, by_class
from upvit_core.figures.score_grid import channel_at, find, heading, picture, score_table
from upvit_core.figures.sizes import sizes_curve
from upvit_core.figures.theme import DARK, LIGHT, Chart, log_ticks, power_of_ten
from upvit_core.planning.difference import difference
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import COMPONENTS, BlockShape, Component, ModelShape
from upvit_core.records.task import IMAGES

SMALL = ModelShape("small", 24, (BlockShape(4, 24, 40),) * 3, (16, 16), (8, 8), 3, 5)


def made_up(shape: ModelShape, *, stderr: bool = True) -> ImportanceScores:
    rng = np.random.default_rng(0)
    values = {key: rng.lognormal(-2, 1.5, width) for key, width in expected_widths(shape).items()}
    errors = {key: 0.1 * value for key, value in values.items()} if stderr else {}
    return ImportanceScores(
        values=values, stderr=errors, criterion="kl", unit="nats, summed over images", shape=shape, images=100
    )


@pytest.fixture(scope="module")
def scores() -> ImportanceScores:
    return made_up(SMALL)


@pytest.fixture(scope="module")
def plan(scores: ImportanceScores) -> PruningPlan:
    return plan_uniform(scores, Ratios(0.5, 0.5, 0.25), heads=2)


def parallel(plan: PruningPlan, *, speed: float | None = 1.5) -> Chart:
    """The cut model before and after training, which is the plan under the sliders, and the whole one."""
    cut = Outcome("cut", "this plan", plan.shape_after, 60.0, 1.5)
    outcomes = [cut, Outcome("whole", "cut only", SMALL, 90.0, 1.0), replace(cut, state="trained", speed=speed)]
    return draw_parallel(SMALL, outcomes, IMAGES, LIGHT)


def charts(scores: ImportanceScores, plan: PruningPlan) -> dict[str, Callable[[], Chart]]:
    group = np.arange(12)
    kl = np.abs(np.random.default_rng(1).normal(size=30))
    q, p = np.full(5, 0.2), np.array([0.6, 0.1, 0.1, 0.1, 0.1])
    points = [
        Point("a", 1.0, 2.0, "measured", "measured a", 1.5, 2.5, now=True, data=[1]),
        Point("b", 2.0, 1.0, "estimated", "estimated b"),
        Point("c", 3.0, 1.0, "published", "published c"),
        Point("d", 4.0, 0.5, "teacher", "the model"),
    ]
    lines = [Line("curve", np.array([1.0, 2.0]), np.array([2.0, 1.0]))]
    return {
        "strips": lambda: draw_kept_strips(scores, plan, LIGHT),
        "strips, nothing cut": lambda: draw_kept_strips(scores, None, DARK, "position"),
        "residual": lambda: heatmap(scores, "residual", plan, LIGHT)[0],
        "attention": lambda: heatmap(scores, "attention", plan, DARK, "position")[0],
        "one block": lambda: heatmap(scores, "ffn", plan, LIGHT, block=1)[0],
        "kept": lambda: kept_curve(scores, "attention", plan, LIGHT),
        "kept, one block": lambda: kept_curve(scores, "ffn", plan, LIGHT, block=2),
        "drawing": lambda: draw_model(SMALL, LIGHT),
        "drawing, thinner": lambda: draw_model(SMALL, DARK, plan.shape_after, emphasis="ffn"),
        "map": lambda: draw_map(
            Axis("residual", "Residual removed, %", np.arange(0, 96, 5)),
            Axis("ffn", "FFN removed, %", np.arange(0, 96, 5)),
            Surface(
                "KL, nats", "", *(np.outer(np.arange(1, 21), np.full(20, scale)) for scale in (1, 0.9, 1.1)), log=True
            ),
            np.add.outer(np.arange(20.0), np.arange(20.0)),
            DARK,
            cost_title="MACs",
            now=(50, 40),
            measured=[(10.0, 20.0, "KL 0.3")],
            data=[["{}"] * 20] * 20,
        ),
        "merging": lambda: draw_head_merging(scores, plan, 1, LIGHT),
        "by class": lambda: by_class("abcde", np.arange(30) % 5, kl, kl > 1, "ffn", LIGHT),
        "attention pair": lambda: attention_pair(np.eye(3) / 3, np.full((3, 3), 1 / 9), DARK),
        "versus": lambda: draw_plan_difference(
            scores, difference(plan, plan_uniform(scores, Ratios(residual=0.25), heads=2)), LIGHT
        ),
        "front": lambda: plot_pareto(points, lines, LIGHT, x_title="parameters", y_title="KL", log_y=True),
        "parallel": lambda: parallel(plan),
        "place": lambda: rank_chart(scores, "attention", 1, 5, group, group < 6, LIGHT),
        "kl by image": lambda: kl_by_image(kl, kl > 1, "residual", DARK),
        "before, after": lambda: before_after(list("abcde"), q, p, "ffn", LIGHT),
        "the sum of a KL": lambda: kl_sum(list("abcde"), q, p, "ffn", DARK, most=3),
        "learning": lambda: plot_learning_curve([0, 10], [20.0, 60.0], 90.0, LIGHT),
        "sizes": lambda: sizes_curve([600_000, 200_000, 50_000], [93.3, 92.0, 90.2], LIGHT, height=400),
        "learning, nothing yet": lambda: plot_learning_curve([], [], None, LIGHT),
    }


NAMES = tuple(charts(made_up(SMALL), plan_uniform(made_up(SMALL))))


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_valid_and_described(name: str, scores: ImportanceScores, plan: PruningPlan) -> None:
    chart = charts(scores, plan)[name]()
    go.Figure(chart.figure.to_dict())
    assert len(chart.alt) > 30
    table = chart.table()
    assert len({len(column) for column in table.values()}) == 1
    layout = chart.figure.to_dict()["layout"]
    for axis in (key for key in layout if key.startswith(("xaxis", "yaxis"))):
        shown = layout[axis].get("visible", True) and layout[axis].get("showticklabels", True)
        assert not shown or layout[axis]["title"]["text"], f"{axis} of {name} has no title"


def test_lines_cross_the_axes_at_what_was_removed_and_measured(plan: PruningPlan) -> None:
    chart = parallel(plan)
    axes = {axis["label"]: list(axis["values"]) for axis in chart.spec["data"][0]["dimensions"]}
    assert list(axes) == ["", "Residual", "Attention", "FFN", "heads", "parameters", "MACs", "speed", "top-1"]
    assert axes[""] == [0, 1, 2]  # the current plan in front
    assert [axes[name] for name in ("Residual", "FFN", "heads")] == [[0, 0.5, 0.5], [0, 0.25, 0.25], [4, 2, 2]]
    assert axes["top-1"] == [90, 60, 60]
    assert 2 ** axes["parameters"][1] == pytest.approx(count_parameters(plan.shape_after))
    assert "Best: whole, 90.0 %" in chart.alt
    without = parallel(plan, speed=None).spec["data"][0]["dimensions"]
    assert "speed" not in {axis["label"] for axis in without}  # not known of all


def test_picture_sorts_and_cuts(scores: ImportanceScores, plan: PruningPlan) -> None:
    p = picture(scores, "ffn", plan)
    for row, block in enumerate(range(3)):
        values = scores.ffn(block)
        assert p.channel[row].tolist() == sorted(range(40), key=lambda c: -values[c])
        np.testing.assert_allclose(10.0 ** p.values[row], np.sort(values)[::-1], rtol=1e-5)
        kept = [c for c, gone in zip(p.channel[row], p.removed[row], strict=True) if not gone]
        assert sorted(kept) == list(plan.blocks[block].ffn.keep)
    assert p.cuts is not None
    assert p.cuts.tolist() == [[30]] * 3
    assert heading(p) == "FFN: 30 of 40 kept in every block"


def test_attention_is_sorted_inside_merged_heads(scores: ImportanceScores, plan: PruningPlan) -> None:
    p = picture(scores, "attention", plan)
    assert p.groups == 2
    for block in range(3):
        for head in range(2):
            inside = p.channel[block, head * 12 : (head + 1) * 12]
            assert sorted(inside) == list(range(head * 12, (head + 1) * 12))
            assert (np.diff(scores.attention(block)[inside]) <= 0).all()
    assert p.cuts is not None
    assert p.cuts.tolist() == [[6, 6]] * 3
    assert heading(p) == "Attention: 4 heads merged to 2, 6 of 12 channels in each"


def test_wide_rows_are_averaged_in_log10() -> None:
    scores = made_up(deit_shape("base"), stderr=False)
    p = picture(scores, "ffn", None, columns=1200)
    assert p.values.shape == (12, 1024)
    ranked = np.log10(np.sort(scores.ffn(3))[::-1])
    np.testing.assert_allclose(p.values[3], [ranked[i : i + 3].mean() for i in range(0, 3072, 3)], rtol=1e-4)


def test_scores_at_or_below_zero_are_drawn_at_the_smallest_positive(scores: ImportanceScores) -> None:
    values = scores.ffn(0).copy()
    values[:2] = 0.0, -1e-6
    p = picture(scores.with_values({"ffn.0": values}), "ffn")
    smallest = min(v for b in range(3) for v in (values if b == 0 else scores.ffn(b)) if v > 0)
    assert 10.0 ** p.values[0].min() == pytest.approx(smallest, rel=1e-5)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("order", ["importance", "position"])
def test_a_click_gives_back_the_channel(
    component: str, order: str, scores: ImportanceScores, plan: PruningPlan
) -> None:
    p = picture(scores, component, plan, order)  # type: ignore[arg-type]
    for channel in (0, 7, 23):
        at = find(p, 0, channel)
        assert at is not None
        assert channel_at(p, *at) == (0, channel)


def test_share_kept_is_the_running_share() -> None:
    x, y = share_kept(np.array([1.0, 6.0, 3.0]), points=4)
    np.testing.assert_allclose(x, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(y, [0, 0.6, 0.9, 1])


def test_a_score_below_zero_counts_as_zero() -> None:
    x, y = share_kept(np.array([3.0, -2.0, 1.0]))
    np.testing.assert_allclose(x, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(y, [0, 0.75, 1, 1])
    np.testing.assert_allclose(share_kept(np.array([-1.0, -2.0]))[1], [0, 0.5, 1])


def test_plan_share_counts_what_the_plan_keeps(scores: ImportanceScores, plan: PruningPlan) -> None:
    channels, score = plan_share(scores, plan, "attention", 1)
    keep = list(plan.blocks[1].attention.keep)
    assert channels == len(keep) / 24
    assert score == pytest.approx(scores.attention(1)[keep].sum() / scores.attention(1).sum())


def test_merging_table_adds_up(scores: ImportanceScores, plan: PruningPlan) -> None:
    table, by_image = draw_head_merging(scores, plan, 0, LIGHT).table(), scores.attention(0) / scores.images
    assert table["merged_into"].tolist() == [0, 0, 1, 1]
    assert table["score"].sum() == pytest.approx(by_image.sum())
    keep = list(plan.blocks[0].attention.keep)
    assert table["score_kept_of_merged"][[0, 2]].sum() == pytest.approx(by_image[keep].sum())


def test_score_table_holds_every_channel(scores: ImportanceScores, plan: PruningPlan) -> None:
    table = score_table(scores, plan)
    assert len(table["score"]) == 24 + 3 * (24 + 40)
    rows = (table["component"] == "attention") & (table["block"] == 2)
    np.testing.assert_array_equal(table["score"][rows], scores.attention(2))
    assert table["channel"][rows][table["kept"][rows]].tolist() == list(plan.blocks[2].attention.keep)
    assert table["rank"][rows][np.argmax(table["score"][rows])] == 1


def test_kl_terms_add_up_to_the_kl() -> None:
    q, p = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    table = before_after(["a", "b", "c"], q, p, "ffn", LIGHT).table()
    assert table["kl_term_nats"].sum() == pytest.approx(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True)))


def test_drawing_is_to_scale(plan: PruningPlan) -> None:
    boxes = [
        s for s in draw_model(SMALL, LIGHT).figure.to_dict()["layout"]["shapes"] if s.get("fillcolor") == "#0072B2"
    ]
    thin = draw_model(SMALL, LIGHT, plan.shape_after).figure.to_dict()["layout"]["shapes"]
    thinner = [s for s in thin if s.get("fillcolor") == "#0072B2"]
    tall, short = (box[0]["y1"] - box[0]["y0"] for box in (boxes, thinner))
    assert short / tall == pytest.approx(0.5)


def test_ticks_are_powers_of_ten() -> None:
    assert [power_of_ten(e) for e in (-3, 0, 1, 2)] == ["10⁻³", "1", "10", "10²"]
    ticks, labels = log_ticks(-6.2, 1.1)
    assert ticks == sorted(ticks)
    assert all(10**t == pytest.approx(10.0 ** round(t)) for t in ticks)
    assert len(labels) <= 4
    ticks, labels = log_ticks(-0.3, 0.9)
    assert labels == ["1", "2", "5"][: len(labels)] or "5" in labels
    np.testing.assert_allclose(10 ** np.array(ticks), [float(text) for text in labels])


def test_cividis_runs_from_dark_to_bright() -> None:
    brightness = [sum(int(part) for part in cividis(s)[4:-1].split(",")) for s in np.linspace(0, 1, 9)]
    assert brightness == sorted(brightness)


def test_published_rows_are_the_published_ones() -> None:
    rows = {row.name: row for row in PUBLISHED}
    assert (rows["UP-DeiT-S"].top1, rows["UP-DeiT-S"].images_per_s, rows["UP-DeiT-S"].speed_up) == (81.56, 603.1, 3.03)
    assert (rows["DeiT-B"].top1, rows["DeiT-B"].params) == (81.84, 86.6)
    assert (rows["UP-DeiT-T"].top1, rows["UP-DeiT-T"].images_per_s) == (75.94, 1408.5)
    assert len(PUBLISHED) == 12


@pytest.mark.parametrize("component", COMPONENTS)
def test_rank_against_rank_places_every_channel_by_both_records(component: Component, scores: ImportanceScores) -> None:
    other = made_up(SMALL).with_values({"ffn.1": np.arange(40.0), "residual": np.arange(24.0)[::-1]})
    key = component if component == "residual" else f"{component}.1"
    exact = {key: [0, 3]}
    chart = rank_against_rank(scores, other, component, LIGHT, exact=exact)
    go.Figure(chart.figure.to_dict())
    table = chart.table()
    for name, percentile, its, sure in zip(*table.values(), strict=True):
        own, _, channel = name.partition(" channel ")
        values, theirs = scores.values[own], other.values[own]
        assert percentile == pytest.approx(100 * (values < values[int(channel)]).sum() / (len(values) - 1))
        assert its == pytest.approx(100 * (theirs < theirs[int(channel)]).sum() / (len(values) - 1))
        assert sure == (own == key and int(channel) in (0, 3))
    assert [len(trace.x) for trace in chart.figure.data if trace.mode == "markers"] == [len(table["exact"]) - 2, 2]
    assert str(len(table["channel"])) in chart.alt


def test_classes_are_ordered_by_the_mean_kl_of_their_images() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    kl, changed = np.array([0.1, 0.3, 1.0, 2.0, 0.5]), np.array([True, False, True, True, False])
    table = by_class(["a", "b", "c"], labels, kl, changed, "ffn", LIGHT).table()
    assert table["class"].tolist() == ["b", "c", "a"]
    assert table["kl_nats"] == pytest.approx([1.5, 0.5, 0.2])
    assert table["predictions_change"].tolist() == [2, 0, 1]


def test_what_is_counted_is_named_by_its_basis(scores: ImportanceScores, plan: PruningPlan) -> None:
    turned = replace(scores, basis="directions")
    for record, component, word, other in (
        (scores, "residual", "channels", "directions"), (turned, "residual", "directions", "channels"),
        (turned, "attention", "directions", "channels"), (turned, "ffn", "channels", "directions"),
    ):  # fmt: skip
        picture_of, _ = heatmap(record, component, plan, LIGHT)
        for chart in (picture_of, kept_curve(record, component, plan, LIGHT)):
            shown = f"{chart.title} {chart.alt} {chart.figure}"
            assert word in shown, (chart.title, component)
            assert other not in shown, (chart.title, component)
        assert word in str(picture_of.figure["layout"]["xaxis"]["title"])


def test_the_sum_of_a_kl_shows_every_term() -> None:
    rng = np.random.default_rng(0)
    q, p = rng.dirichlet(np.full(12, 0.4)), rng.dirichlet(np.full(12, 0.4))
    q = np.append(q, 0.0)  # a class that the model excludes adds nothing
    p = np.append(p * 0.9, 0.1)
    by_hand = [a * math.log(a / b) if a else 0.0 for a, b in zip(q.tolist(), p.tolist(), strict=True)]
    np.testing.assert_allclose(kl_terms(q, p), by_hand, rtol=1e-9, atol=1e-15)
    chart = kl_sum([f"class {i}" for i in range(13)], q, p, "residual", LIGHT, most=4)
    _, _, terms = (trace.y for trace in chart.figure.data)
    assert len(terms) == 5
    assert sum(terms) == pytest.approx(sum(by_hand))
    assert sum(chart.figure.data[0].y) == pytest.approx(100)
    assert chart.figure.data[2].x[-1] == "9 others"
    assert f"{sum(by_hand):.3g} nats" in chart.alt


@pytest.mark.parametrize("log_y", [True, False])
def test_names_stay_inside_the_front(log_y: bool) -> None:
    """A name goes below its mark at the top edge, and to the left of it at the right edge, where it would be cut."""
    points = [
        Point(name, x, y, "measured", now=name == "now")
        for name, x, y in (("top", 1, 1.0), ("low", 2, 0.1), ("now", 3, 0.95))
    ]
    chart = plot_pareto(points, (), LIGHT, x_title="", y_title="", log_y=log_y)
    (named,) = (trace for trace in chart.spec["data"] if trace["mode"] == "markers+text")
    assert named["textposition"] == ["bottom center", "top center", "bottom left"]
    assert named["text"] == ["top", "low", "\u00a0<br>now"]


def test_front_of_a_model_that_is_seldom_right_fills_its_picture() -> None:
    points = [Point(name, x, y, "measured") for name, x, y in (("whole", 2, 30.0), ("thin", 1, 20.0))]
    best = Line("original", np.array([0.0, 2.0]), np.array([40.0, 40.0]))
    chart = plot_pareto(points, [best], LIGHT, x_title="", y_title="", shares=True)
    assert chart.spec["layout"]["yaxis"]["range"] == pytest.approx([0, 50])
