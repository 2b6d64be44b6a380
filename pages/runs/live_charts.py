"""Live charts of runs, drawn by the browser: it receives all points once, then only new ones.

The first message stays the same until the choice of runs changes, so no browser receives it twice; new points travel
in a second, small element. It repeats the latest updates, since Streamlit drops a message that still waits when a
script runs again. A browser that lost more asks for everything.
"""

import json
import secrets
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import plotly
import streamlit as st
import streamlit.components.v1

from pages.services import run_data
from pages.services.session import session
from pages.widgets import presenter
from upvit_core.figures.evaluations import Points
from upvit_core.figures.live import COLUMNS, counts, marks, published, since, titles
from upvit_core.figures.runs import RunCurve, judged_by
from upvit_core.runs.store import RunStore

REPEATED = 6
"""Number of latest updates in every message."""

Update = list[dict[str, object]]
FOLDER = Path(__file__).parent / "browser"
PLOTLY = Path(plotly.__file__).parent / "package_data"  # with plotly.min.js
PLACE = f"""<div class="runs" data-plotly="component/{__name__}.plotly/plotly.min.js?v={version("plotly")}">
<figure></figure></div>"""


def _text(*names: str) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


_charts = st.components.v2.component("runs_charts", js=_text("plot.js", "runs.js"))
_panel = st.components.v2.component(
    "runs_panel", html=PLACE, css=_text("runs.css"), js=_text("panel.js"), isolate_styles=False
)
_feed = st.components.v2.component("runs_feed", js=_text("feed.js"))


@dataclass
class Sent:
    """The messages that one browser has received: the picture, and the number of rows of each run by now."""

    choice: list[dict[str, str]]
    picture: bytes
    epoch: str
    first: dict[str, dict[str, int]]  # rows in the picture
    now: dict[str, dict[str, int]] = field(default_factory=dict)
    updates: deque[Update] = field(default_factory=lambda: deque(maxlen=REPEATED))


@dataclass
class Browser:
    sent: Sent | None = None


@dataclass(frozen=True)
class View:
    """Choices of how the points are drawn."""

    published: bool = False
    expected: dict[str, tuple[float, float]] = field(default_factory=dict)  # top-1 at the end, by run
    of: str = ""  # the data whose runs are drawn; empty where all runs share it


def send(store: RunStore, curves: Sequence[RunCurve]) -> None:
    """Send everything that was measured when these runs were chosen, for the charts to draw."""
    choice, browser = [_described(curve) for curve in curves], session().part(Browser)
    if browser.sent is None or browser.sent.choice != choice:
        browser.sent = picture(choice, {c.id: run_data.rows().points(store, c.id) for c in curves})
    st.components.v1.declare_component("plotly", path=PLOTLY)  # serves the package's plotly.js, which the charts load
    _charts(key="runs-charts", data=browser.sent.picture)


def chart(name: str, height: int) -> None:
    """The place of one chart: `task` (accuracy or perplexity over epochs), `speed`, `loss` or `features`."""
    _panel(key=f"runs-chart-{name}", data={"chart": name, "height": height}, height=height)


def _described(curve: RunCurve) -> dict[str, str]:
    fields = {name: str(getattr(curve, name)) for name in ("id", "label", "colour", "plan", "group", "data", "epochs")}
    return fields | {"taught": curve.teacher}


def picture(choice: Sequence[dict[str, str]], points: dict[str, Points]) -> Sent:
    """All points of the chosen runs, as one message."""
    epoch, runs, first = secrets.token_hex(4), [], {}
    for described in choice:
        known = points[described["id"]]
        runs.append({**described, **marks(known), **{kind: since(known, kind, 0) for kind in COLUMNS}})
        first[described["id"]] = counts(known)
    content = json.dumps({"epoch": epoch, "runs": runs}, separators=(",", ":")).encode()
    return Sent(list(choice), content, epoch, first, {run: dict(counts) for run, counts in first.items()})


def news(sent: Sent, points: dict[str, Points]) -> Update:
    """The points since the last message, by run; `sent` is brought up to date.

    A run with more points than the picture is listed even without new ones, so that a browser that has only the picture
    notices.
    """
    updates: Update = []
    for run, received in sent.now.items():
        known, part, now = points[run], dict[str, object](), counts(points[run])
        for kind in COLUMNS:
            if now[kind] != sent.first[run][kind]:
                part[kind] = since(known, kind, received[kind])
                received[kind] = now[kind]
        if now["marks"] != sent.first[run]["marks"]:
            part |= marks(known)
        if part:
            updates.append({"id": run, **part})
    return updates


def feed(store: RunStore, view: View, going: Collection[str]) -> None:
    """Send the new points of active runs and how all are drawn; forces a new picture where the browser needs one."""
    sent = session().part(Browser).sent
    if sent is None:
        return
    read = run_data.rows()
    points = {run: (read.points if run in going else read.known)(store, run) for run in sent.now}
    if any(counts(points[run])[kind] < count for run, known in sent.now.items() for kind, count in known.items()):
        forget()  # a file was replaced
        st.rerun()
    drawn = [points[run["id"]] for run in sent.choice if not view.of or run["data"] == view.of]
    if (update := news(sent, points)) and update not in sent.updates:
        sent.updates.append(update)
    data = {"epoch": sent.epoch, "view": shown(drawn, view), "add": [part for each in sent.updates for part in each]}
    if _feed(key="runs-feed", data=data, on_lost_change=lambda: None).lost == sent.epoch:
        forget()
        st.rerun()


def forget() -> None:
    """Send a new picture next time."""
    session().part(Browser).sent = None


def shown(runs: Sequence[Points], view: View) -> dict[str, object]:
    """The view as the browser's script reads it."""
    quantity = judged_by(runs).key
    return {
        "quantity": quantity,
        "of": view.of,
        "published": published() if view.published else [],
        "expected": view.expected,
        "larger": presenter.LARGER if presenter.on() else 1,
        "titles": titles(runs, quantity),
    }
