"""The text of a page, as a reader sees it."""

import re

from streamlit.testing.v1 import AppTest

from pages.services.session import KEY, Session
from upvit_core.planning.what_if import WhatIf

PAPER = {"basis": "Cut as in the paper", "heads": "3"}
"""The link of a plan cut as in the paper, with half of the demo's heads."""


def html_of(test: AppTest) -> str:
    """The page's HTML without the definitions of terms, which open in place."""
    text = "\n".join(str(element.proto.body) for element in test.get("html"))
    text = re.sub(r'<span popover="auto".*?</i></span>', "", text)
    return re.sub(r'<button type="button" class="term"[^>]*>(.*?)</button>', r"\1", text)


def check(test: AppTest) -> None:
    """Fails where the page shows an exception or an error."""
    assert not test.exception
    assert not test.error, [error.value for error in test.error]


def session_of(test: AppTest) -> Session:
    """The session of the page."""
    found = test.session_state[KEY]
    assert isinstance(found, Session)
    return found


def what_if_of(test: AppTest) -> WhatIf:
    """The what-if at which the sliders stand."""
    what_if = session_of(test).what_if
    assert what_if is not None
    return what_if
