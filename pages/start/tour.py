"""The demo under one slider: what was measured at every position comes with the demo and is drawn by the browser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from string import Template

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.services import demo_tour
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import charts
from upvit_core.figures.browser import text_of
from upvit_core.planning.live_counts import live_counts
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.tour import Tour

HERE = Path(__file__).parent / "browser"
START = 50


@dataclass
class At:
    """The position of the slider, and the way to cut."""

    percent: int = START
    way: str = "repaired"


def what_if(model: OpenModel, tour: Tour) -> WhatIf:
    """The plan under the slider."""
    at = session().part(At)
    return demo_tour.what_if(model.shape, tour.ways[at.way], at.percent)


def draw(tour: Tour, model: OpenModel) -> None:
    """Slider, drawing, numbers and captions; the server hears of a move on release."""
    at = session().part(At)
    data = {
        "model": live_counts(model.shape),
        "heads": model.shape.num_heads,
        "tour": tour.model_dump(mode="json", exclude={"pictures"}),
        "percent": at.percent,
        "way": at.way,
        "theme": charts.theme().name,
    }
    with st.container(key="tour"):
        found = _component(tour.to_json())(
            key="tour-at", data=data, on_percent_change=lambda: None, on_way_change=lambda: None
        )
    if isinstance(found.percent, int | float) and 0 <= found.percent < len(tour.ways["paper"].top1):
        at.percent = int(found.percent)
    if found.way in tour.ways:
        at.way = found.way


@lru_cache(1)
def _component(content: str) -> ComponentRenderer:
    return st.components.v2.component(
        "start_tour",
        html=_html(Tour.from_json(content)),
        css=(HERE / "tour.css").read_text(encoding="utf-8"),
        js=text_of("counts.js", "drawing.js") + (HERE / "tour.js").read_text(encoding="utf-8"),
        isolate_styles=False,
    )


def _html(tour: Tour) -> str:
    speed = tour.speed
    threads = f"{speed.threads} thread{'s' if speed.threads > 1 else ''}"
    looks = "".join(
        f'<figure><img src="data:image/png;base64,{picture}" alt="A test image: {escape(tour.classes[label])}">'
        f'<figcaption><span data-at="answer-{number}"></span><span data-at="was-{number}"></span></figcaption></figure>'
        for number, (picture, label) in enumerate(zip(tour.pictures, tour.labels, strict=True))
    )
    where = f"on {speed.device}, {threads}, in turns with the original at every 5 %; between those, a straight line"
    template = Template((HERE / "tour.html").read_text(encoding="utf-8"))
    return template.substitute(batch=speed.batch, where=escape(where), images=f"{tour.images:,}", looks=looks)
