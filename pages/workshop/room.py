"""The room: participants, their solved exercises and best plans, in one file that is replaced as a whole.

A participant is a random token that the browser keeps; the file holds its hash, results, and at most a nickname.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upvit_core.atomic import locked, write_atomically
from upvit_core.errors import UPViTError
from upvit_core.files import digest

MOST_PEOPLE = 300
LONGEST_NAME = 20


class RoomError(UPViTError):
    """A change of the room that was refused, or could not be written."""


class Best(BaseModel):
    """A person's best plan within the allowed MACs: measured top-1 in percent, MACs, and its settings in words."""

    model_config = ConfigDict(frozen=True)

    top1: float
    macs: int
    words: str


class Person(BaseModel):
    """The progress of one browser. `answers` are its last ones, so that a reload shows them again."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    solved: tuple[str, ...] = ()
    answers: dict[str, list[str | int]] = Field(default_factory=dict)
    best: Best | None = None
    seen: Annotated[float, Field(ge=0)] = 0.0


@dataclass
class Participant:
    """A browser session's token, and the answers that it asked to check, by exercise."""

    token: str = ""
    asked: dict[str, list[str | int]] = field(default_factory=dict)


class _Record(BaseModel):
    people: dict[str, Person] = Field(default_factory=dict)


class Room:
    """The room in a folder, which servers on one machine may share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "room.json"

    def people(self) -> dict[str, Person]:
        """Everyone by hash. An unreadable file counts as an empty room, and stays until the next change."""
        try:
            return _Record.model_validate_json(self.file.read_bytes()).people
        except (OSError, ValidationError):
            return {}

    def person(self, token: str) -> Person:
        return self.people().get(hashed(token), Person())

    def leaderboard(self) -> list[Person]:
        """Everyone with a nickname: most exercises solved first, then the best top-1, then the earliest arrival."""
        named = [person for person in self.people().values() if person.name]
        return sorted(named, key=lambda p: (-len(p.solved), -(p.best.top1 if p.best else 0.0), p.seen))

    def rename(self, token: str, name: str) -> None:
        """Take a nickname. Raises RoomError for an empty, long or taken one."""
        name = " ".join(name.split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise RoomError(f"The nickname {name[:40]!r} is not valid; give 1 to {LONGEST_NAME} letters.")

        def change(people: dict[str, Person], own: Person) -> Person:
            others = {p.name.casefold() for key, p in people.items() if key != hashed(token)}
            if name.casefold() in others:
                raise RoomError(f"{name} is taken in this room; choose another nickname.")
            return own.model_copy(update={"name": name})

        self._change(token, change)

    def answered(self, token: str, exercise: str, answer: list[str | int]) -> None:
        self._change(token, lambda _, own: own.model_copy(update={"answers": {**own.answers, exercise: answer}}))

    def solved(self, token: str, exercise: str, best: Best | None = None) -> None:
        """Tick an exercise off; of two plans the better one stays."""

        def change(_: dict[str, Person], own: Person) -> Person:
            ticked = own.solved if exercise in own.solved else (*own.solved, exercise)
            better = best if best and (own.best is None or best.top1 > own.best.top1) else own.best
            return own.model_copy(update={"solved": ticked, "best": better})

        self._change(token, change)

    def clear(self) -> None:
        """Remove everyone, with names, progress and results."""
        self._write(lambda people: people.clear())

    def _change(self, token: str, change: Callable[[dict[str, Person], Person], Person]) -> None:
        key = hashed(token)

        def apply(people: dict[str, Person]) -> None:
            if key not in people and len(people) >= MOST_PEOPLE:
                raise RoomError(f"The room is full ({MOST_PEOPLE} people); the host can clear it.")
            own = people.get(key, Person(seen=time.time()))
            people[key] = change(people, own)

        self._write(apply)

    def _write(self, apply: Callable[[dict[str, Person]], object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock", timeout=10.0) as held:
            if not held:
                raise RoomError("The room is busy; try again.")
            people = self.people()
            apply(people)
            write_atomically(self.file, _Record(people=people).model_dump_json(indent=1).encode())


def hashed(token: str) -> str:
    return digest(token, 24)
