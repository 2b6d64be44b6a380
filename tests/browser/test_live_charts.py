"""Runs' live charts in a real browser: kept, added to, zoomed, read by keys; their numbers against the tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import ARTEFACTS, settle
from tests.support.made_runs import evaluate_sizes, made_elastic, made_run
from tests.support.server import server
from upvit_core.figures.evaluations import Points
from upvit_core.figures.runs import RunCurve, speed_table
from upvit_core.runs import RunStore

DRAWN = "(name) => window.upvitRuns?.live?.plots?.[name]?.chart ?? {points: []}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = RunStore(tmp_path_factory.mktemp("live") / "runs")
    for ratio in (0.25, 0.5, 0.75):
        made_run(store, ratio, group="sweep")
    made_run(store, 0.4, "running", share=0.5)
    return store


@pytest.fixture(scope="module")
def runs_address(store: RunStore) -> Iterator[str]:
    with server(store.root.parent, OMP_NUM_THREADS="1") as (url, _):
        yield url


@pytest.fixture
def page(browser: Browser, runs_address: str) -> Iterator[Page]:
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{runs_address}/runs")
    settle(page, 180)
    for drawn_last in ('"speed"] .annotation-text', '"loss"] .scatterlayer path', '"task"] .scatterlayer .point'):
        page.locator(f"[data-chart={drawn_last}").first.wait_for(state="attached")
    yield page
    context.close()


def drawn(page: Page, name: str) -> dict[str, Any]:
    return page.evaluate(f"(name) => JSON.parse(JSON.stringify(({DRAWN})(name)))", name)


def going(store: RunStore) -> Any:
    return store.get(next(s.id for s in store.list() if s.state.state == "running"))


def steps_drawn(page: Page, run_id: str) -> int:
    return page.evaluate(f"(id) => ({DRAWN})('loss').points.filter(({{run}}) => run === id).length", run_id)


def write(store: RunStore, count: int) -> None:
    run = going(store)
    first = len(store.read_metrics(run.id)[0]) + 1000
    for step in range(first, first + count):
        run.append_metrics({"step": step, "epoch": 3.0, "seconds": 9.0, "phase": "train", "loss": 0.5})


def test_points_are_those_of_the_table(page: Page, store: RunStore) -> None:
    curves = [RunCurve(s.id, s.name, "", Points(store.read_metrics(s.id)[0]), teacher="demo") for s in store.list()]
    table = speed_table(curves).table()
    chart = drawn(page, "speed")
    measured = [point for point in chart["points"] if point.get("shape") != "star"]
    assert sorted((p["run"], p["x"], p["y"]) for p in measured) == [
        (run, pytest.approx(x, rel=1e-5), pytest.approx(y, rel=1e-5))
        for run, x, y in sorted(zip(table["id"], table["x"], table["y"], strict=True))
    ]
    (star,) = [point for point in chart["points"] if point.get("shape") == "star"]
    assert (star["x"], star["y"]) == (1.0, 91.7)
    assert len([line for line in chart["lines"] if line.get("dash")]) == 1
    climb = drawn(page, "task")
    curve = [(p["run"], p["x"], p["y"]) for p in climb["points"] if p.get("shape") != "star"]
    assert sorted(curve) == [
        (run, pytest.approx(epoch, rel=1e-5), pytest.approx(y, rel=1e-5))
        for run, epoch, y in sorted(zip(table["id"], table["epoch"], table["y"], strict=True))
    ]
    assert (climb["y"]["range"], climb["x"]["ticks"]) == ([0, 102], [0, 1, 2, 3, 4])
    assert climb["rules"] == [{"y": 91.7, "strong": True}]
    values = {label["text"].split(" %")[0] for label in climb["labels"]}
    assert {f"{c.points.evals[-1]['top1']:.1f}" for c in curves} <= values


def test_the_picture_is_sent_once(browser: Browser, runs_address: str) -> None:
    """A browser names the large messages that it has; updates bring small ones alone."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(60_000)
    frames: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda content: frames.append(len(content))))
    page.goto(f"{runs_address}/runs")
    settle(page, 180)
    page.wait_for_function("window.upvitRuns?.live?.view")
    picture = max(frames)
    frames.clear()
    page.wait_for_timeout(2500)  # an update, too
    assert picture > 50_000
    assert max(frames) < 10_000
    context.close()


def shown_range(page: Page, name: str) -> list[float]:
    return page.evaluate("(name) => window.upvitRuns.live.plots[name].plot._fullLayout.xaxis.range", name)


def marks_drawn(page: Page, name: str) -> int:
    return page.locator(f'[data-chart="{name}"] .scatterlayer .point').count()


def test_new_points_come_to_the_same_chart_and_the_zoom_stays(page: Page, store: RunStore) -> None:
    run, before = going(store).id, steps_drawn(page, going(store).id)
    chart = page.locator('[data-chart="loss"] .plot')
    chart.evaluate("node => { node.kept = true }")
    epoch = page.evaluate("window.upvitRuns.live.epoch")
    chart.scroll_into_view_if_needed()
    place = chart.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + 120, place["y"] + 30)
    page.mouse.down()
    page.mouse.move(place["x"] + 220, place["y"] + 120, steps=4)
    page.mouse.up()
    whole = page.locator('[data-chart="loss"] .whole')
    whole.wait_for()
    zoomed = shown_range(page, "loss")
    write(store, 7)
    page.wait_for_function(f"([id, n]) => ({DRAWN})('loss').points.filter(({{run}}) => run === id).length === n",
                           arg=[run, before + 7])  # fmt: skip
    assert chart.evaluate("node => node.kept")
    assert page.evaluate("window.upvitRuns.live.epoch") == epoch
    assert whole.is_visible()
    assert shown_range(page, "loss") == zoomed
    whole.click()
    whole.wait_for(state="hidden")
    assert shown_range(page, "loss")[1] > zoomed[1]
    marks = marks_drawn(page, "speed")
    evaluation = {"step": 5000, "phase": "eval", "top1": 60.0, "images_per_s": 1500.0, "images": 2000}
    evaluation |= {"epoch": 3.5, "seconds": 9}
    going(store).append_metrics(evaluation)
    page.wait_for_function(f"({DRAWN})('speed').points.some(({{y}}) => y === 60)")
    page.wait_for_function(
        "n => document.querySelectorAll('[data-chart=speed] .scatterlayer .point').length === n", arg=marks + 1
    )
    assert chart.evaluate("node => node.kept")
    going(store).append_metrics({**evaluation, "phase": "final", "top1": 62.5, "images": 9000, "teacher_top1": 90.5})
    page.wait_for_function(f"({DRAWN})('speed').points.some(({{y, shape}}) => y === 62.5 && shape === 'square')")
    assert drawn(page, "task")["y"]["title"] == "top-1, % of 2,000 test images; □ all 9,000"
    assert "62.5 of all 9,000" in str(page.locator('[data-chart="speed"] .plot').get_attribute("aria-label"))
    assert "60.0 % at 1.9" in str(page.locator('[data-chart="speed"] .plot').get_attribute("aria-label"))


def test_a_browser_that_lost_points_is_told_everything_again(page: Page, store: RunStore) -> None:
    run = going(store).id
    page.evaluate("""id => { const run = window.upvitRuns.live.runs.find((run) => run.id === id);
      run.train.next -= 5; }""", run)  # fmt: skip
    epoch = page.evaluate("window.upvitRuns.live.epoch")
    write(store, 2)
    page.wait_for_function("epoch => window.upvitRuns.live.epoch !== epoch", arg=epoch)
    page.wait_for_function(f"([id, n]) => ({DRAWN})('loss').points.filter(({{run}}) => run === id).length === n",
                           arg=[run, sum("loss" in row for row in store.read_metrics(run)[0])])  # fmt: skip


def test_coming_back_to_the_page_shows_what_is_true_by_then(page: Page, store: RunStore) -> None:
    run = going(store).id
    write(store, 1)
    page.wait_for_timeout(2500)
    page.get_by_text("Learn", exact=True).first.click()
    page.get_by_test_id("stTopNavDropdownLink").filter(has_text="Glossary").click()
    settle(page)
    write(store, 4)
    page.get_by_role("link", name="Runs").first.click()
    page.wait_for_function(f"([id, n]) => ({DRAWN})('loss').points.filter(({{run}}) => run === id).length === n",
                           arg=[run, sum("loss" in row for row in store.read_metrics(run)[0])])  # fmt: skip


def test_keys_walk_from_point_to_point(page: Page, store: RunStore) -> None:
    page.locator('[data-chart="task"] .plot').focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    label = str(page.locator('[data-chart="task"] .said').text_content())
    assert label.startswith("run demo ")
    assert "top-1, %" in label
    tip = page.locator('[data-chart="task"] .tip')
    assert label.split(", ")[0].removeprefix("run ") in str(tip.text_content())
    page.keyboard.press("+")
    page.locator('[data-chart="task"] .whole').wait_for()
    page.keyboard.press("Escape")
    page.locator('[data-chart="task"] .whole').wait_for(state="hidden")
    tip.wait_for(state="hidden")


def test_a_pointer_finds_a_point_and_another_theme_draws_again(page: Page) -> None:
    mark = page.locator('[data-chart="speed"] .scatterlayer .point').last
    mark.hover(force=True)
    page.locator('[data-chart="speed"] .tip').wait_for()
    title = page.locator('[data-chart="speed"] .xtitle')
    light = title.evaluate("node => getComputedStyle(node).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => getComputedStyle(document.querySelector('[data-chart=speed] .xtitle')).fill !== old", arg=light
    )
    assert title.evaluate("node => getComputedStyle(node).fill") == "rgb(163, 172, 184)"


def test_labels_do_not_overlap(page: Page) -> None:
    boxes = [label.bounding_box() for label in page.locator('[data-chart="speed"] .annotation-text').all()]
    assert len(boxes) >= 4
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a
            assert b
            assert (
                a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
                or a["y"] + 0.75 * a["height"] <= b["y"] or b["y"] + 0.75 * b["height"] <= a["y"]
            )  # fmt: skip


def test_an_elastic_run_is_a_curve_that_rises(browser: Browser, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = made_elastic(store)
    sizes = "() => window.upvitRuns?.live?.plots.speed?.chart?.lines.length"
    with server(tmp_path, OMP_NUM_THREADS="1") as (url, _):
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/runs")
        page.wait_for_function(f"({sizes})() === 1")
        (surgery,) = drawn(page, "speed")["lines"]
        assert surgery["dash"]
        assert surgery["at"] == [[1, 91.7], [pytest.approx(4 / 3, rel=1e-5), 90], [2, 80], [4, 40]]
        before = None
        for step, top1 in ((100, [91.8, 91.0, 88.0, 75.0]), (200, [91.9, 91.5, 90.0, 85.0])):
            evaluate_sizes(run, step, top1)
            page.wait_for_function(f"({sizes})() === {1 + step // 100}")
            chart = drawn(page, "speed")
            now = chart["lines"][-1]
            assert "dash" not in now
            assert [y for _, y in now["at"]] == top1
            assert chart["lines"][0] == surgery, "the line after surgery stays, dashed"
            assert all(y > low for (_, y), (_, low) in zip(now["at"], (before or surgery)["at"], strict=True))
            before = now
        assert [p["y"] for p in chart["points"] if p.get("shape") == "star"] == [91.7]
        assert {(p["x"], p["y"]) for p in chart["points"] if p["run"] == run.id and p["solid"]} == {
            (x, y) for x, y in now["at"]
        }
        assert "every size 85.0 % at 4×" in chart["alt"]
        page.locator('[data-chart="speed"] .scatterlayer path').first.wait_for(state="attached")
        page.screenshot(path=ARTEFACTS / "elastic-curve.png")
        page.close()
