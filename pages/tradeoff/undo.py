"""Undo and redo of slider moves, for the model that is open."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from pages.services import slider_state
from upvit_core.planning.what_if import WhatIf

MOST = 100


@dataclass
class UndoStack:
    """Where the sliders stood, oldest first; `at` is where they stand."""

    steps: list[WhatIf] = field(default_factory=list)
    at: int = -1

    def note(self, now: WhatIf) -> None:
        """A move: what had been undone is forgotten."""
        if self.at >= 0 and self.steps[self.at] == now:
            return
        self.steps = [*self.steps[: self.at + 1], now][-MOST:]
        self.at = len(self.steps) - 1

    def step(self, by: int) -> WhatIf | None:
        """One back (-1) or forth (1); None where there is nothing."""
        if not 0 <= self.at + by < len(self.steps):
            return None
        self.at += by
        return self.steps[self.at]


def undo_stack(source: str) -> UndoStack:
    every: dict[str, UndoStack] = st.session_state.setdefault("trails", {})
    return every.setdefault(source, UndoStack())


def buttons(source: str, now: WhatIf) -> None:
    """Two buttons; to be drawn after the sliders."""
    own = undo_stack(source)
    own.note(now)

    def go(by: int) -> None:
        target = own.step(by)
        if target is not None:
            slider_state.set_to(target)

    with st.container(horizontal=True, key="history"):
        st.button("Undo", icon=":material/undo:", on_click=go, args=(-1,), disabled=own.at < 1, key="undo",
                  type="tertiary", help="Back to where the sliders stood before.")  # fmt: skip
        st.button("Redo", icon=":material/redo:", on_click=go, args=(1,), disabled=own.at >= len(own.steps) - 1,
                  key="redo", type="tertiary")  # fmt: skip
