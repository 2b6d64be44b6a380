"""The parts of a Vision Transformer beyond a plain ViT's; its tensors and costs follow from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from upvit_core.files import Json, Values

Gate = Literal["", "packed", "split"]


@dataclass(frozen=True)
class Structure:
    """The defaults are a plain ViT's; `ModelShape` has the widths.

    timm: the name of one of timm's models with these parts; a saved folder gives it other arguments.
    rms: norms without mean and bias (RMSNorm). gate: the FFN's activation multiplies a second product of its input
    (SwiGLU), both from one layer ("packed") or from two ("split"). biases: of attention's output and of the FFN.
    attention_norm, ffn_norm: a norm before the last layer of attention or FFN. qk_norm: norms of queries and keys, head
    by head. pixel_norm: the pixels of every patch are normalised before they are embedded. patch_norm: a norm of the
    patches before their positions are added. positions: learned ones are added.
    pool: (width, heads, hidden channels) of attention pooling before the head; pool_prefix: it reads the class and
    register tokens too. head_dim: attention is cut by whole heads of this width (0: by channels), so that a head's
    rotary or relative positions and norms do not change. rope: settings of timm's rotary positions.
    relative: every block adds a table of relative positions to q·k.
    """

    timm: str = ""
    rms: bool = False
    gate: Gate = ""
    biases: bool = True
    attention_norm: bool = False
    ffn_norm: bool = False
    qk_norm: bool = False
    pixel_norm: bool = False
    patch_norm: bool = False
    positions: bool = True
    pool: tuple[int, ...] = ()
    pool_prefix: bool = False
    head_dim: int = 0
    rope: tuple[tuple[str, Any], ...] = ()
    relative: bool = False

    @property
    def unit(self) -> int:
        """Number of attention channels that are cut together."""
        return self.head_dim or 1

    @property
    def learns_angles(self) -> bool:
        """True if every head of every block learns its own rotary frequencies."""
        return dict(self.rope).get("type") == "mixed"

    @property
    def first_layers(self) -> int:
        """Number of linear maps of its input in an FFN: 2 with a gate."""
        return 2 if self.gate else 1

    def to_dict(self) -> Json:
        """The fields that differ from a plain ViT's, as JSON values."""
        values = {key: value for key, value in asdict(self).items() if value != getattr(PLAIN, key)}
        return {key: _lists(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Json) -> Structure:
        """Raises ValueError or TypeError where a file holds something else."""
        values = {key: _tuples(value) for key, value in dict(values).items()}
        check_numbers(cls, values)
        numbers = values.get("pool", ())
        if len(numbers) not in (0, 3) or any(type(n) is not int or not 0 < n < 2**31 for n in numbers):
            raise ValueError(f"pool is {str(numbers)[:40]}, expected three whole numbers")
        if values.get("gate", "") not in ("", "packed", "split"):
            raise ValueError(f"gate is {str(values['gate'])[:40]}, expected packed or split")
        dict(values.get("rope", ()))
        return cls(**values)


PLAIN = Structure()


def _lists(value: Any) -> Any:
    return [_lists(each) for each in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list | tuple) else value


def check_numbers(record: type[Any], values: Values) -> None:
    """Raises ValueError where a field has a value of another type, or a number out of range."""
    for field in fields(record):
        value, many = values.get(field.name), field.type == "tuple[int, int]"
        if field.name in values and field.type == "bool" and type(value) is not bool:
            raise ValueError(f"{field.name} is {str(value)[:40]}, expected true or false")
        if field.name not in values or not (many or field.type == "int" or (field.type == "int | None" and value)):
            continue
        numbers = tuple(value or ()) if many else (value,)
        if len(numbers) != 1 + many or any(type(n) is not int or not 0 <= n < 2**31 for n in numbers):
            wanted = "two whole numbers" if many else "a whole number"
            raise ValueError(f"{field.name} is {str(value)[:40]}, expected {wanted}")
        if many and not all(numbers):
            raise ValueError(f"{field.name} is {value}, expected numbers above 0")
