"""Names of the criteria. Imports no torch, so that menus and the command line's help are there at once."""

from enum import StrEnum


class CriterionName(StrEnum):
    """What `score` and the Importance page offer."""

    KL = "kl"
    FISHER = "fisher"
    REFINE = "refine"
    L1 = "l1"
    L2 = "l2"
    TAYLOR = "taylor"
    VARIANCE = "variance"
    RANDOM = "random"


class Precision(StrEnum):
    """Of the forward passes of `kl` and `fisher`; KL-divergences are computed in float32 or better always."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"
