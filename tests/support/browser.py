"""Screenshots of every page, light and dark, at 1440 and 1024 pixels, from the real app on a free port.

    python -m tests.support.browser OUT [--open SOURCE] [--page tradeoff] [--width 1440] [--theme light]
                                  [--query "residual=75"] [--full]

Writes OUT/<page>-<theme>-<width>.png; whole pages with --full. The README's picture of a page is made by

    python -m tests.support.browser assets/readme --readme [--page tradeoff] [--runs RUNS]

light, in few colours to stay small; with RUNS, it is their accuracy against speed.
"""

import argparse
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support import ROOT
from tests.support.server import server

ARTEFACTS = ROOT / "tests" / "artifacts"
Visit = Callable[..., Page]
PAGES = ("", "importance", "tradeoff", "runs", "method", "workshop", "glossary")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


BUSY = '[data-testid="stProgress"], [data-testid="stSkeleton"], [data-stale="true"]'
"""Elements that a page draws while it waits."""


def settle(page: Page, timeout: float = 60.0) -> None:
    """Wait until the script has run, every chart is drawn, and nothing has changed for a moment."""
    page.wait_for_selector('[data-testid="stApp"]', timeout=timeout * 1000)
    page.wait_for_selector("h1", state="attached", timeout=timeout * 1000)  # hidden while presenting
    end, last, since = time.monotonic() + timeout, "", time.monotonic()
    while time.monotonic() < end:
        busy = page.locator('[data-testid="stApp"][data-test-script-state="running"]').count()
        progress = page.locator(BUSY).count()
        now = str(page.evaluate("document.body.innerText.length + ':' + document.querySelectorAll('.main-svg').length"))
        if busy or progress or now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 0.8:
            return
        page.wait_for_timeout(100)


def faults(page: Page, tries: int = 3) -> list[str]:
    """Faults that axe-core calls serious or critical and that stay: a page that is being drawn again is pale."""
    found: list[str] = []
    for _ in range(tries):
        settle(page)
        found = [
            f"{fault['impact']}: {fault['help']}: {fault['nodes'][0]['html'][:200]}"
            for fault in Axe().run(page).response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        if not found:
            break
    return found


def readme(out: Path, pages: Sequence[str], runs: Path | None) -> None:
    """A picture of each page from a fresh server, OUT/<page>.png; of runs, accuracy against speed alone."""
    from PIL import Image

    more = {"UPVIT_RUNS": str(runs.resolve())} if runs else {}
    with tempfile.TemporaryDirectory() as home, server(Path(home), **more) as (address, _), chromium() as browser:
        page = browser.new_context(
            reduced_motion="reduce",
            viewport={"width": 1800 if runs else 1360, "height": 850},
            color_scheme="light",
            device_scale_factor=2 if runs else 1,
        ).new_page()
        for name in pages:
            page.goto(f"{address}/{name}", timeout=180_000)
            settle(page, 180)
            path = out / f"{name}.png"
            if runs:
                page.locator('[data-chart="speed"]').first.screenshot(path=path)
            else:
                page.screenshot(path=path)
            with Image.open(path) as picture:
                small = picture.convert("RGB")
                if not runs:
                    small = small.resize((1020, 638), Image.Resampling.LANCZOS)
                small.quantize(256, kmeans=3).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--open", default="")
    parser.add_argument("--page", action="append")
    parser.add_argument("--width", action="append", type=int)
    parser.add_argument("--theme", action="append", choices=["light", "dark"])
    parser.add_argument("--query", default="")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.readme:
        readme(arguments.out, arguments.page or (("runs",) if arguments.runs else ("tradeoff",)), arguments.runs)
        return
    query = dict(urllib.parse.parse_qsl(arguments.query))
    if arguments.open:
        query["open"] = arguments.open
    with tempfile.TemporaryDirectory() as home, server(Path(home)) as (address, _), chromium() as browser:
        for theme in arguments.theme or ["light", "dark"]:
            for width in arguments.width or [1440, 1024]:
                context = browser.new_context(
                    reduced_motion="reduce", viewport={"width": width, "height": 900}, color_scheme=theme
                )
                page = context.new_page()
                for name in arguments.page or PAGES:
                    page.goto(f"{address}/{name}?{urllib.parse.urlencode(query)}", timeout=120_000)
                    settle(page, 120)
                    if arguments.full:
                        height = page.evaluate(
                            "Math.max(...[...document.querySelectorAll('[data-testid=stMain], section')].map(e => "
                            "e.scrollHeight))"
                        )
                        page.set_viewport_size({"width": width, "height": int(height) + 20})
                        settle(page)
                    page.screenshot(path=arguments.out / f"{name or 'start'}-{theme}-{width}.png")
                    page.set_viewport_size({"width": width, "height": 900})
                context.close()


if __name__ == "__main__":
    main()
