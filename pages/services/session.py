"""The state of one browser session, and the one order in which a setting's value is looked for.

Streamlit's session state holds the widgets under their own keys and everything else in one `Session`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import streamlit as st

from upvit_core.planning.what_if import SliderValues, WhatIf

if TYPE_CHECKING:
    from pages.services.open_model import OpenModel
    from upvit_core.records.scores import ImportanceScores

KEY = "studio"
T = TypeVar("T")


@dataclass
class Session:
    """The memory of a browser session beside its widgets; `datasets`, `scores` and `lessons` are by model source."""

    source: str | None = None  # the open model
    link_source: str | None = None  # the model to which scores and images of the link belong
    shown: tuple[OpenModel, ImportanceScores | None] | None = None  # for the strip above each page
    datasets: dict[str, str] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)
    scoring: dict[str, str] = field(default_factory=dict)  # names of records in the making, by job key
    previewed: set[str] = field(default_factory=set)  # jobs whose first record has been shown
    device: str = "auto"  # on which jobs compute
    what_if: WhatIf | None = None
    widths: tuple[str, SliderValues] | None = None  # block by block, and the sliders at which they were set
    move_to: WhatIf | None = None  # where the sliders go on the next run
    lessons: dict[str, str] = field(default_factory=dict)  # runs started on Method
    asking: tuple[str, str] | None = None  # the open dialog ("cancel", "delete", "new", "score") and its run
    message: str = ""  # an error of the last action, shown once
    active_runs: bool = False  # when Runs was last drawn
    unlocked: bool = False  # by the host's code
    uploads: list[str] = field(default_factory=list)  # paths of what was uploaded here
    presenting: bool | None = None
    page: str = ""  # the title of the page that is open
    greeted: bool = False
    asked: dict[str, str] = field(default_factory=dict)  # settings of the first visit's link, until they are compared
    notes: list[str] = field(default_factory=list)  # sentences on settings that could not be used, until dismissed
    owner: str = field(default_factory=lambda: secrets.token_hex(4))  # of the runs started here
    parts: dict[type, object] = field(default_factory=dict)

    def part(self, kind: type[T]) -> T:
        """A page's own part of the session, made on first use."""
        part = self.parts.setdefault(kind, kind())
        assert isinstance(part, kind)
        return part


def session() -> Session:
    """The session of the browser that this script runs for."""
    if KEY not in st.session_state:
        st.session_state[KEY] = Session()
    now: Session = st.session_state[KEY]
    return now


def resolve(key: str, saved: object = None) -> object:
    """A setting's value: of its widget, else of the session, else of the link; None where none of them has one.

    Widgets forget their values on a page switch; `saved` is what the session remembers.
    """
    # The link comes last and is read only where it counts, since reading it is slow.
    for look in (lambda: st.session_state.get(key), lambda: saved, lambda: st.query_params.get(key)):
        if (value := look()) is not None and value != "":
            return value
    return None
