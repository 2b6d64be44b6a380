"""How long people wait: a slider's rerun at DeiT-B size, its new picture in Chromium, and a click on a channel.

`python -m tests.benchmarks.ui` (some two minutes). DeiT-B's published scores are taken from `--scores`; without them,
scores of the same shape are made up. The rerun is timed over the websocket, from the request until everything is drawn
and sent; the picture in a real Chromium, from the key press until the strips have changed on the screen; the channel
inspector on the demo, from the mouse button until the KL of every image is drawn. Each number has its target beside it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

from tests.benchmarks.load import percentile
from tests.benchmarks.session import Session, server
from tests.support.browser import chromium, settle
from tests.support.made_up import made_up_scores

PARTS = ("rerun", "picture", "click")
SLIDERS = ("Residual removed", "Attention removed", "FFN removed")
SERVER_MS, PICTURE_MS, INSPECTOR_MS = 100, 400, 1000
# Seconds from the event to the first frame in which the part of the page has another picture; -1 before that.
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


def report(name: str, seconds: list[float], target: int) -> bool:
    """Print one line; whether the 95th percentile meets its target."""
    median, p95, longest = statistics.median(seconds), percentile(seconds, 0.95), max(seconds)
    met = 1000 * p95 <= target
    print(
        f"{name}: p95 {1000 * p95:.0f} ms (target {target}: {'met' if met else 'MISSED'}), median "
        f"{1000 * median:.0f} ms, longest {1000 * longest:.0f} ms, {len(seconds)} times",
        flush=True,
    )
    return met


def reruns(address: str, source: str, moves: int, pause: float) -> list[float]:
    """Seconds of a slider's rerun, one session."""
    session, rng = Session(address, "tradeoff", f"open={source}"), random.Random(0)
    session.rerun()
    time.sleep(8)  # the first job imports torch, the front is being found
    for _ in range(5):
        session.slide(rng.choice(SLIDERS), rng.randint(1, 90))
    seconds = []
    for _ in range(moves):
        time.sleep(pause)
        seconds.append(session.slide(rng.choice(SLIDERS), rng.randint(1, 90)))
    assert not session.errors, session.errors
    session.close()
    return seconds


def timed(page: Page, event: str, part: str, act: Callable[[], None]) -> float:
    page.evaluate(WATCH, [event, part])
    act()
    page.wait_for_function("window.waited >= 0", timeout=120_000)
    return float(page.evaluate("window.waited")) / 1000


def pictures(page: Page, address: str, source: str, moves: int, pause: float) -> list[float]:
    """Seconds from a key on a slider to the new strips."""
    page.goto(f"http://{address}/tradeoff?open={source}")
    settle(page, 180)
    time.sleep(5)
    rng, seconds = random.Random(1), []
    for number in range(moves + 3):
        thumb = page.get_by_role("slider", name=rng.choice(SLIDERS))
        thumb.focus()
        key = rng.choice(("ArrowRight", "ArrowLeft"))
        taken = timed(page, "keydown", ".st-key-strips", lambda thumb=thumb, key=key: thumb.press(key))
        if number >= 3:
            seconds.append(taken)
        page.wait_for_timeout(1000 * pause)
    return seconds


def inspections(page: Page, address: str, clicks: int, pause: float) -> list[float]:
    """Seconds from a click on a channel of the demo to the KL of every image, each channel for the first time."""
    page.goto(f"http://{address}/importance")
    settle(page, 180)
    rng, seconds, names = random.Random(2), [], ("residual", "attention", "ffn")
    for number in range(clicks + 3):
        name = names[number % 3]
        chart = page.locator(f".st-key-{name}-scores .js-plotly-plot")
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(1000 * pause)
        box = chart.locator(".nsewdrag").first.bounding_box()
        assert box is not None
        x = box["x"] + box["width"] * rng.uniform(0.02, 0.98)
        y = box["y"] + box["height"] * rng.uniform(0.05, 0.95)
        page.mouse.move(x, y)
        page.wait_for_timeout(300)
        taken = timed(page, "mouseup", ".st-key-kl-by-image", lambda x=x, y=y: page.mouse.click(x, y))
        if number >= 3:  # the first ones may still wait for torch, weights and images
            seconds.append(taken)
        settle(page)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, help="folder of DeiT-B's published score files")
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--clicks", type=int, default=24)
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between two moves")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part alone; may be given again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, _):
        scores = asked.scores.resolve() if asked.scores else made_up_scores(Path(folder) / "scores")
        source = f"published:{scores}"
        met, parts = [], asked.only or PARTS
        if "rerun" in parts:
            found = reruns(address, source, asked.moves, asked.pause)
            met.append(report("a slider's rerun, DeiT-B", found, SERVER_MS))
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            if "picture" in parts:
                found = pictures(page, address, source, asked.moves, asked.pause)
                met.append(report("a slider's new picture, DeiT-B", found, PICTURE_MS))
            if "click" in parts:
                found = inspections(page, address, asked.clicks, asked.pause)
                met.append(report("a click on a channel, demo", found, INSPECTOR_MS))
    return not all(met)


if __name__ == "__main__":
    sys.exit(main())
