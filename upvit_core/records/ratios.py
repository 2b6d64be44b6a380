"""The shares of a model to remove: one number a component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from upvit_core.errors import PlanError


def _share(default: float | None, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Ratios:
    """The share of channels removed of each component, in [0, 1), the same in every block and stage.

    `reduction` None: spatial reductions go with the residual, as stock timm builds. Raises PlanError for other numbers.
    """

    residual: float = _share(0.0, "share of residual channels removed")
    attention: float = _share(0.0, "share of attention channels removed")
    ffn: float = _share(0.0, "share of FFN channels removed")
    reduction: float | None = _share(None, "share of spatial reductions' channels removed; default: the residual's")

    def __post_init__(self) -> None:
        for name, ratio in self.named.items():
            if not 0 <= ratio < 1:
                raise PlanError(f"The {name} ratio is the share removed, in [0, 1), not {ratio}; 0.5 removes half.")

    @classmethod
    def equal(cls, share: float) -> Ratios:
        """The same share of the residual, attention and FFN, and reductions with the residual."""
        return cls(share, share, share)

    @classmethod
    def requested(cls, request: Mapping[str, Any]) -> Ratios | None:
        """The ratios that a plan records in `requested`; None where it came from widths, a preset or a budget."""
        shares = {
            name: value for name in NAMES if isinstance(value := request.get(name), int | float) and 0 <= value < 1
        }
        return cls(**shares) if {"residual", "attention", "ffn"} <= shares.keys() else None

    @property
    def named(self) -> dict[str, float]:
        """Ratios by component, without a reduction that goes with the residual."""
        return {name: ratio for name in NAMES if (ratio := getattr(self, name)) is not None}

    @property
    def percents(self) -> dict[str, float]:
        """`named` in percent: 30.0 for 0.3, not 30.000000000000004."""
        return {name: round(100 * ratio, 10) for name, ratio in self.named.items()}


NAMES = tuple(each.name for each in fields(Ratios))
