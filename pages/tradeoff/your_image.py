"""The tab "Your image": a picture that the user gives, with the answers of the original and of the current plan."""

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from pages.services import jobs, limits, own_image
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff.measurements import Measurements
from pages.widgets import progress
from pages.widgets.plain import plain
from pages.widgets.tables import breakable, image_tag
from upvit_core.errors import UPViTError
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan

UPLOAD, PATH = "own-image", "own-image-path"  # keys of widgets


@dataclass
class Own:
    """The picture given in this session, or why it was refused."""

    content: bytes | None = None
    name: str = ""
    message: str = ""


def may_give() -> bool:
    return limits.limits().uploads or limits.is_host()


def draw(model: OpenModel, plan: PruningPlan, now: WhatIf, found: Measurements) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if limits.limits().uploads:
            st.file_uploader(
                "Drop an image; it is kept in memory only", ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "ppm"],
                key=UPLOAD, on_change=_uploaded, max_upload_size=own_image.MEGABYTES,
            )  # fmt: skip
        if limits.is_host():
            place = "/data/photo.jpg"
            st.text_input("or a path on this machine", placeholder=place, key=PATH, on_change=_named)
    own = session().part(Own)
    if own.message:
        st.error(plain(own.message))
    elif own.content is not None:
        first = own_image.answers(model, own.content, own.name)
        measured = found.accuracy is not None and not found.accuracy.active
        second = own_image.answers(model, own.content, own.name, plan, repair=now.repair) if measured else None
        progress.redraw_when_done([first, second, found.accuracy], lambda: _answers(first, second))


def _uploaded() -> None:
    file = st.session_state[UPLOAD]
    if file is not None:
        _take(lambda: own_image.checked(file.getvalue(), file.name), file.name)


def _named() -> None:
    if path := str(st.session_state[PATH]).strip():
        _take(lambda: own_image.read(path), path)


def _take(read: Callable[[], bytes], name: str) -> None:
    try:
        session().parts[Own] = Own(read(), name)
    except UPViTError as error:
        session().parts[Own] = Own(message=str(error))


def _answers(first: jobs.Job[own_image.Answers], second: jobs.Job[own_image.Answers] | None) -> None:
    """Draw the picture and the answers that are ready."""
    if failed := first.error or (second.error if second else ""):
        st.error(plain(failed))
        return
    original, thin = jobs.result_of(first), jobs.result_of(second)
    if original is None:
        st.caption("Looking at your image.")
        return
    lists = "".join(_list(title, found) for title, found in (("Original", original), ("This plan", thin)))
    st.html(
        f'<div class="own"><figure>{image_tag(original.seen, "Your image, as the model reads it")}'
        f"<figcaption>as the model reads it</figcaption></figure>{lists}</div>"
    )


def _list(title: str, found: own_image.Answers | None) -> str:
    rows = "".join(
        f'<li style="--share: {share:.1%}"><span>{breakable(name)}</span><b>{100 * share:.1f} %</b></li>'
        for name, share in (found.likeliest if found else ())
    )
    return f"<div><h4>{title}</h4><ol>{rows or '<li><span>once the plan is measured</span></li>'}</ol></div>"
