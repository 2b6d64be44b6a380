"""Charts of runs that a browser keeps and adds to: a picture of everything once, then only what is new.

The picture is the same message until the choice of runs changes, so that no browser is sent it twice; what is
new travels in a second, small element. A browser that lost something asks for everything.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
import streamlit.components.v1

from pages.services import run_data
from pages.services.session import session
from pages.widgets import presenter
from upvit_core.figures.live import COLUMNS, Points, published, titles
from upvit_core.figures.runs import RunCurve
from upvit_core.runs.store import RunStore

FOLDER = Path(__file__).parent / "browser"
PLOTLY = Path(plotly.__file__).parent / "package_data"  # with plotly.min.js
HTML = f"""<div class="runs" data-plotly="component/{__name__}.plotly/plotly.min.js?v={version("plotly")}">
<figure data-chart="speed" data-height="440"></figure>
<div class="small">
<figure data-chart="loss" data-height="240"></figure>
<figure data-chart="task" data-height="240"></figure>
<figure data-chart="features" data-height="240" hidden></figure>
</div></div>"""


def _text(*names: str) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


_charts = st.components.v2.component(
    "runs_charts", html=HTML, css=_text("runs.css"), js=_text("plot.js", "runs.js"), isolate_styles=False
)
_feed = st.components.v2.component("runs_feed", js=_text("feed.js"))


@dataclass
class Told:
    """What one browser has been told: the picture, and how many rows of each run since."""

    choice: list[dict[str, str]]
    picture: bytes
    epoch: str
    first: dict[str, dict[str, int]]  # in the picture
    now: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Browser:
    told: Told | None = None


@dataclass(frozen=True)
class View:
    """How the same points are shown."""

    relative: bool = False
    published: bool = False
    of: str = ""  # the data whose runs are drawn; empty: all are of the same


def charts(store: RunStore, curves: Sequence[RunCurve]) -> None:
    """The charts, with everything that was measured when these runs were chosen."""
    choice = [_described(curve) for curve in curves]
    told = session().part(Browser).told
    if told is None or told.choice != choice:
        told = session().part(Browser).told = picture(
            choice, {c.id: run_data.rows().points(store, c.id) for c in curves}
        )
    st.components.v1.declare_component("plotly", path=PLOTLY)  # serves the package's plotly.js, which the charts load
    _charts(key="runs-charts", data=told.picture)


def _described(curve: RunCurve) -> dict[str, str]:
    return {
        "id": curve.id, "label": curve.label, "colour": curve.colour, "plan": curve.plan, "group": curve.group,
        "taught": curve.teacher, "data": curve.data,
    }  # fmt: skip


def picture(choice: Sequence[dict[str, str]], points: dict[str, Points]) -> Told:
    """Everything about the chosen runs, as one message."""
    epoch, runs, first = secrets.token_hex(4), [], {}
    for described in choice:
        known = points[described["id"]]
        parts = {kind: known.since(kind, 0) for kind in COLUMNS}
        runs.append({**described, "teacher": known.teacher, "whole": known.whole, **parts})
        first[described["id"]] = {**{kind: part[1] for kind, part in parts.items()}, "marks": known.count["marks"]}
    content = json.dumps({"epoch": epoch, "runs": runs}, separators=(",", ":")).encode()
    return Told(list(choice), content, epoch, first, {run: dict(counts) for run, counts in first.items()})


def news(told: Told, points: dict[str, Points]) -> list[dict[str, Any]]:
    """What came since the browser was told last; `told` remembers that it was.

    A run that has moved since the picture is named even where it stands still, so that a browser which has only the
    picture notices.
    """
    found = []
    for run, counts in told.now.items():
        known, part = points[run], dict[str, Any]()
        for kind in COLUMNS:
            if known.count[kind] != told.first[run][kind]:
                part[kind] = known.since(kind, counts[kind])
                counts[kind] = part[kind][1]
        if known.count["marks"] != told.first[run]["marks"]:
            part |= {"teacher": known.teacher, "whole": known.whole}
        if part:
            found.append({"id": run, **part})
    return found


def feed(store: RunStore, view: View, going: Collection[str]) -> None:
    """The new points of those drawn runs that go on, and how all are to be shown; a new picture where one is needed."""
    told = session().part(Browser).told
    if told is None:
        return
    read = run_data.rows()
    points = {run: (read.points if run in going else read.known)(store, run) for run in told.now}
    if any(points[run].count[kind] < count for run, counts in told.now.items() for kind, count in counts.items()):
        forget()  # a file was replaced
        st.rerun()
    drawn = [points[run["id"]] for run in told.choice if not view.of or run["data"] == view.of]
    data = {"epoch": told.epoch, "view": shown(drawn, view), "add": news(told, points)}
    if _feed(key="runs-feed", data=data, on_lost_change=lambda: None).lost == told.epoch:
        forget()
        st.rerun()


def forget() -> None:
    """The next picture is a new one."""
    session().part(Browser).told = None


def shown(runs: Sequence[Points], view: View) -> dict[str, Any]:
    """How these runs are shown, in the browser's words."""
    told = [run for run in runs if run.of_text is not None]
    quantity = "perplexity" if told and all(run.of_text for run in told) else "top1"
    return {
        "quantity": quantity,
        "relative": view.relative,
        "of": view.of,
        "published": published() if view.published and not view.relative else [],
        "larger": presenter.LARGER if presenter.on() else 1,
        "titles": titles(runs, quantity, relative=view.relative),  # type: ignore[arg-type]
    }
