"""Undo and redo of slider moves, for the model that is open."""

from dataclasses import dataclass, field

import streamlit as st

from pages.services import slider_state
from pages.tradeoff.state import state
from upvit_core.planning.what_if import WhatIf

MOST = 100


@dataclass
class UndoStack:
    """Positions of the sliders, oldest first; `at` is the current one."""

    steps: list[WhatIf] = field(default_factory=list)
    at: int = -1

    def note(self, now: WhatIf) -> None:
        """Record a move; moves that had been undone are forgotten."""
        if self.at >= 0 and self.steps[self.at] == now:
            return
        self.steps = [*self.steps[: self.at + 1], now][-MOST:]
        self.at = len(self.steps) - 1

    def step(self, by: int) -> WhatIf | None:
        """Go one back (-1) or forward (1); None at the end."""
        if not 0 <= self.at + by < len(self.steps):
            return None
        self.at += by
        return self.steps[self.at]


def undo_buttons(source: str, now: WhatIf) -> None:
    """Draw Undo and Redo; to be called after the sliders are drawn."""
    stack = state().undo.setdefault(source, UndoStack())
    stack.note(now)

    def go(by: int) -> None:
        target = stack.step(by)
        if target is not None:
            slider_state.set_to(target)

    at, last = stack.at, len(stack.steps) - 1
    with st.container(horizontal=True, key="history"):
        for label, by, disabled in (("Undo", -1, at < 1), ("Redo", 1, at >= last)):
            icon, key = f":material/{label.lower()}:", label.lower()
            st.button(label, icon=icon, on_click=go, args=(by,), disabled=disabled, key=key, type="tertiary")
