"""Which recipe `distill` takes where none is asked for, and why."""

from __future__ import annotations

from pathlib import Path

from upvit_core.planning.plan import PruningPlan
from upvit_core.recipe import usual_preset

WORDS = {
    "letter": "nothing says that the start was repaired",
    "repaired": "{where} records repair, which large steps and mixed images would undo",
    "language": "{where} is of a language model",
}


def recipe_for(student: str | None, plan: Path | None) -> tuple[str, str]:
    """Name of a preset, and the sentence that says which one was taken and why."""
    path = plan if plan is not None else Path(student or "") / "plan.json"
    known = PruningPlan.load(path) if path.is_file() else None
    repaired = known is not None and known.fitted is not None and known.fitted.repair
    name = usual_preset(known.shape_before.family if known else "", repaired=repaired)
    return name, f"Recipe {name}: {WORDS[name].format(where=path)}; --recipe NAME takes another."
