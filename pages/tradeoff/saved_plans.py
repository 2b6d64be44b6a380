"""Plans saved under a name, by model: each is a plan.json that the command line reads too."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pages.services import folders
from pages.services.open_model import OpenModel
from upvit_core.errors import PlanError
from upvit_core.files import digest
from upvit_core.planning.what_if import WhatIf, is_legal
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape

LONGEST_NAME = 60
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class SavedPlan:
    """A plan with its name; `what_if` is where the sliders stood, None where the file does not say."""

    name: str
    plan: PruningPlan
    what_if: WhatIf | None

    @property
    def repair(self) -> bool:
        return self.what_if is not None and self.what_if.repair


def folder(model: OpenModel) -> Path:
    """By the model's weights where they have a digest, so that a moved file keeps its plans; else by its source."""
    name = digest(model.digest or model.source)
    return folders.plans() / name


def all_saved(model: OpenModel) -> list[SavedPlan]:
    """The saved plans of this model, by name; unreadable files, and plans of other models, are left out."""
    plans = []
    for path in sorted(folder(model).glob("*.json")):
        try:
            with path.open("rb") as file:
                plans.append(read(file.read(MOST_BYTES + 1), path.stem, model.shape))
        except (PlanError, OSError):
            continue
    return sorted(plans, key=lambda saved: saved.name.casefold())


def read(content: bytes, name: str, shape: ModelShape) -> SavedPlan:
    """A plan from the content of a file. Raises PlanError where it holds none, or one of another model."""
    if len(content) > MOST_BYTES:
        raise PlanError(f"{name} has more than {MOST_BYTES >> 20} MB; no plan is that large.")
    plan = PruningPlan.from_json(content, name)
    before = plan.shape_before
    if [(g.key, g.width, g.heads) for g in before.groups] != [(g.key, g.width, g.heads) for g in shape.groups]:
        raise PlanError(f"{name} is a plan of {before.name}, which is shaped otherwise than {shape.name}; open that.")
    title = plan.requested.get("name")
    title = " ".join(title.split())[:LONGEST_NAME] if isinstance(title, str) and title.isprintable() else ""
    return SavedPlan(title or name, plan, _what_if(plan.requested.get("what_if"), shape))


def _what_if(values: object, shape: ModelShape) -> WhatIf | None:
    """The sliders that a file records; None if it records none, or values that no slider can take."""
    names = {field.name for field in fields(WhatIf)}
    if not isinstance(values, dict):
        return None
    try:
        known = {key: value for key, value in values.items() if key in names}
        what_if = WhatIf(**known | {"basis": Basis(known.get("basis", Basis.CHANNELS))})
        return what_if if is_legal(what_if, shape) else None
    except (TypeError, ValueError, PlanError):
        return None


def file_content(name: str, plan: PruningPlan, what_if: WhatIf | None) -> str:
    """The plan as a file, with its name and the sliders among what was requested."""
    requested = {**plan.requested, "name": name, "what_if": asdict(what_if) if what_if else None}
    return plan.model_copy(update={"requested": json.loads(json.dumps(requested))}).to_json()


def save(model: OpenModel, name: str, plan: PruningPlan, what_if: WhatIf | None) -> SavedPlan:
    """Save a plan, in place of one with the same name. Raises PlanError for an empty or long name."""
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise PlanError(f"{name[:40]!r} is not a name for a plan; give 1 to {LONGEST_NAME} characters.")
    content = file_content(name, plan, what_if)
    saved = read(content.encode(), name, model.shape)
    PruningPlan.from_json(content).save(_path(model, name))
    return saved


def remove(model: OpenModel, name: str) -> None:
    _path(model, name).unlink(missing_ok=True)


def _path(model: OpenModel, name: str) -> Path:
    return folder(model) / f"{digest(name.casefold(), 20)}.json"
