"""The basis in which scores and plans count."""

from enum import StrEnum


class Basis(StrEnum):
    """`channels`, as in the letter, or `directions` of a rotated residual and of rotated heads (FFN: channels)."""

    CHANNELS = "channels"
    DIRECTIONS = "directions"
