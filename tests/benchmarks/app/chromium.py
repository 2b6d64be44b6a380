"""Timings in a real Chromium: from a key or a click until the screen has changed."""

import random
import re
import tempfile
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Page

from tests.benchmarks.app.timing import report
from tests.benchmarks.app.websocket import SLIDERS, Pause, reruns
from tests.browser.test_drag import FRAMES, SHIFTS, held
from tests.support.browser import chromium, settle
from tests.support.made_up import made_up_scores
from tests.support.server import server

app = typer.Typer()
SERVER_MS, PICTURE_MS, INSPECTOR_MS = 100, 400, 1000
HEATMAP_S, DISTILLED_S, RECOVERED_S = 30, 300, 180
PATIENCE_S = 1200
LESSON = '[aria-label*="of the student against training steps"]'
# Milliseconds from the event to the first frame in which the part of the page has another picture; -1 before that.
WATCH = """([event, part]) => {
  const picture = () => {
    const drawn = document.querySelector(part + " .js-plotly-plot .main-svg");
    return drawn && drawn.querySelector("image, .trace path") ? document.querySelector(part).innerHTML : "";
  };
  const before = picture();
  window.waited = -1;
  addEventListener(event, start => {
    const look = () => {
      const now = picture();
      if (now && now !== before) { window.waited = performance.now() - start.timeStamp; return; }
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }, {capture: true, once: true});
}"""


class Part(StrEnum):
    RERUN = "rerun"
    PICTURE = "picture"
    CLICK = "click"


def timed(page: Page, event: str, part: str, act: Callable[[], None]) -> float:
    page.evaluate(WATCH, [event, part])
    act()
    page.wait_for_function("window.waited >= 0", timeout=120_000)
    return float(page.evaluate("window.waited")) / 1000


def pictures(page: Page, address: str, source: str, moves: int, pause: float) -> list[float]:
    """Seconds from a key on a slider to the new strips."""
    page.goto(f"{address}/tradeoff?open={source}")
    settle(page, 180)
    time.sleep(5)
    rng, seconds = random.Random(1), []
    for _ in range(moves + 3):
        thumb, key = page.get_by_role("slider", name=rng.choice(SLIDERS)), rng.choice(("ArrowRight", "ArrowLeft"))
        thumb.focus()
        seconds.append(timed(page, "keydown", ".st-key-strips", lambda thumb=thumb, key=key: thumb.press(key)))  # type: ignore[misc]
        page.wait_for_timeout(1000 * pause)
    return seconds[3:]


def inspections(page: Page, address: str, clicks: int, pause: float) -> list[float]:
    """Seconds from a click on a channel of the demo to the KL of every image, each channel for the first time."""
    page.goto(f"{address}/importance")
    settle(page, 180)
    rng, seconds, names = random.Random(2), [], ("residual", "attention", "ffn")
    for number in range(clicks + 3):
        chart = page.locator(f".st-key-{names[number % 3]}-scores .js-plotly-plot")
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(1000 * pause)
        box = chart.locator(".nsewdrag").first.bounding_box()
        assert box is not None
        x = box["x"] + box["width"] * rng.uniform(0.02, 0.98)
        y = box["y"] + box["height"] * rng.uniform(0.05, 0.95)
        page.mouse.move(x, y)
        page.wait_for_timeout(300)
        seconds.append(timed(page, "mouseup", ".st-key-kl-by-image", lambda x=x, y=y: page.mouse.click(x, y)))  # type: ignore[misc]
        settle(page)
    return seconds[3:]  # the first ones may still wait for torch, weights and images


@app.command()
def waits(
    scores: Annotated[Path | None, typer.Option(help="folder of DeiT-B's published scores; else made-up ones")] = None,
    moves: int = 60,
    clicks: int = 24,
    pause: Pause = 0.4,
    only: Annotated[list[Part], typer.Option(help="measure this part alone; may be given again")] = [*Part],  # noqa: B006
) -> None:
    """A slider's rerun and its new picture at DeiT-B's size; a click on a channel of the demo."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, _):
        source = f"published:{scores.resolve() if scores else made_up_scores(Path(folder) / 'scores')}"
        met = []
        if Part.RERUN in only:
            met.append(report("a slider's rerun, DeiT-B", reruns(address, source, moves, pause), SERVER_MS))
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            if Part.PICTURE in only:
                seconds = pictures(page, address, source, moves, pause)
                met.append(report("a slider's new picture, DeiT-B", seconds, PICTURE_MS))
            if Part.CLICK in only:
                seconds = inspections(page, address, clicks, pause)
                met.append(report("a click on a channel, demo", seconds, INSPECTOR_MS))
    raise typer.Exit(not all(met))


class Watch:
    """Prints what happened and when; remembers whether every target was met."""

    def __init__(self) -> None:
        self.start, self.met = time.monotonic(), True

    @property
    def now(self) -> float:
        return time.monotonic() - self.start

    def mark(self, what: str, since: float = 0.0, target: float | None = None) -> None:
        seconds, goal = self.now - since, ""
        if target is not None:
            self.met &= seconds <= target
            goal = f" (target {target:.0f}: {'met' if seconds <= target else 'MISSED'})"
        print(f"{seconds:7.1f} s  {what}{goal}", flush=True)


def go_to(page: Page, title: str) -> None:
    page.get_by_role("link", name=title, exact=True).first.click()
    page.get_by_role("heading", name=title, level=1).wait_for()


def drag(page: Page) -> None:
    """Print the pictures a second while a slider of Trade-off is dragged there and back."""
    settle(page)
    page.evaluate(FRAMES)
    with held(page, page.get_by_role("slider", name="FFN removed")) as (x, y, percent):
        for step in (*range(30), *range(30, -1, -1)):
            page.mouse.move(x + step * percent, y)
            page.wait_for_timeout(30)
        drawn = page.evaluate("() => { window.watching = false; return window.drawn }")
    print(f"dragged at {1000 * len(drawn) / sum(drawn):.0f} pictures a second, the longest of {max(drawn):.0f} ms")


def first_minutes(page: Page, address: str, watch: Watch) -> None:
    """The README's "The first minute", with every setting as it stands."""
    page.add_init_script(SHIFTS)
    page.goto(address)
    page.locator('[data-at="top1"]').first.wait_for()
    watch.mark("the first page is there, with its numbers")
    go_to(page, "Importance")
    page.locator(".st-key-ffn-scores .js-plotly-plot image").first.wait_for()
    watch.mark("the heatmaps are drawn", target=HEATMAP_S)
    go_to(page, "Trade-off")
    page.locator(".st-key-strips .js-plotly-plot image").first.wait_for()
    watch.mark("Trade-off is drawn")
    drag(page)
    shifts = page.evaluate("window.shifts.map(([, value]) => value)")
    print(f"layout shift over the three pages so far: {sum(shifts):.3f}, the largest {max(shifts, default=0):.3f}")
    page.get_by_role("button", name="Distil…").click()
    page.get_by_role("dialog").get_by_role("button", name="Start", exact=False).last.click()
    page.get_by_role("heading", name="Runs", level=1).wait_for()
    watch.mark("Start is pressed, Runs is open")
    page.wait_for_function("window.upvitRuns?.live?.plots.speed.chart?.points.length > 0")
    watch.mark("the first point of the curve is on Runs")
    page.locator(".run .now").get_by_text("to the original").first.wait_for()
    points = page.evaluate("window.upvitRuns.live.plots.speed.chart.points.length")
    words = " ".join(page.locator(".run .now").first.inner_text().split())
    watch.mark(f"the distilled demo is there ({words}, {points} points)", target=DISTILLED_S)


def teach(page: Page, watch: Watch) -> None:
    """The lesson of Method, from the press until half of what the cut took is back, and until its end."""
    go_to(page, "Method")
    page.get_by_role("radio", name=re.compile("Learning again")).first.click()
    button = page.get_by_role("button", name="Teach it")
    button.wait_for()
    pressed, label, recovered = watch.now, "", False
    button.click()
    goal: float | None = None
    while watch.now - pressed < PATIENCE_S:
        chart = page.locator(LESSON)
        text = (chart.last.get_attribute("aria-label") or "") if chart.count() else ""
        now, teacher = re.search(r"Now ([\d.]+) %", text), re.search(r"teacher has ([\d.]+) %", text)
        if now and teacher and text != label:
            label, top1, whole = text, float(now[1]), float(teacher[1])
            if goal is None:
                goal = (top1 + whole) / 2
                watch.mark(f"Method: the lesson starts from {top1} % (teacher {whole} %)", pressed)
            elif not recovered and top1 >= goal:
                recovered = True
                watch.mark(f"Method: half of what was lost is back, {top1} %", pressed, RECOVERED_S)
        if goal is not None and page.get_by_text(re.compile(r"^done$")).count():
            watch.mark(f"Method: the lesson ends with {label.partition('Now ')[2].partition(' after')[0]}", pressed)
            break
        page.wait_for_timeout(200)
    watch.met &= recovered


@app.command()
def first_visit() -> None:
    """A fresh server, a fresh browser profile and no runs: some six minutes on two cores, up to a distilled demo."""
    with tempfile.TemporaryDirectory() as home:
        watch = Watch()
        with server(Path(home)) as (address, _), chromium() as browser:
            watch.mark("the server answers, a browser is open")
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            page.set_default_timeout(1000 * PATIENCE_S)
            first_minutes(page, address, watch)
            teach(page, watch)
    raise typer.Exit(not watch.met)
