"""Frozen records that are JSON files."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from upvit_core.atomic import write_atomically
from upvit_core.errors import UPViTError, first_fault


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JsonRecord(Record):
    """A record that is saved as one file; `verb` is the command that makes it, `error` is raised for a bad file."""

    kind: ClassVar[str]
    verb: ClassVar[str]
    error: ClassVar[type[UPViTError]]

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    def save(self, path: str | Path) -> None:
        """Write one JSON file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.to_json().encode())

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "") -> Self:
        """Raises `error` with the first fault; `name` stands for the file in its sentence."""
        name, again = name or f"the {cls.kind}", f"make it again with `{cls.verb}`"
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise cls.error(f"{name} is not a valid {cls.kind}: {first_fault(error)}; {again}.") from error
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise cls.error(f"{name} has a malformed source_shape ({error}); {again}.") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises `error` where the file is missing or not a valid record."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise cls.error(f"There is no readable {cls.kind} at {path}; make one with `{cls.verb}`.") from error
        return cls.from_json(text, str(path))
