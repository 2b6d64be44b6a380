"""The Trade-off page's part of the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pages.services.session import session
from upvit_core.planning.what_if import WhatIf

if TYPE_CHECKING:
    from pages.tradeoff.budget import BudgetResult
    from pages.tradeoff.tried_plans import TriedPlan
    from pages.tradeoff.undo import UndoStack


@dataclass
class TradeoffState:
    """The page's memory between runs; `tried` is by model and scores, `undo` by model."""

    tried: dict[str, dict[str, TriedPlan]] = field(default_factory=dict)
    undo: dict[str, UndoStack] = field(default_factory=dict)
    budget: BudgetResult | None = None
    clicked: WhatIf | None = None  # the last plan clicked in the Pareto chart
    clicked_map: WhatIf | None = None  # and on the map
    previews: tuple[str, ...] = ()  # keys of the jobs that measure the plan under the sliders
    last_quality: tuple[str, str] = ("", "—")  # model source and the last measured value, shown while a new one comes
    compared: dict[str, str] = field(default_factory=dict)  # plans to choose on the next run, by widget key
    bundle_error: str = ""
    distilling: bool = False  # the form is open


def state() -> TradeoffState:
    return session().part(TradeoffState)
