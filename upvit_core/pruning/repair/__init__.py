"""Closed-form least squares after surgery."""

from upvit_core.pruning.repair.layer_fit import LayerRepair, RepairReport
from upvit_core.pruning.repair.repair import repair

__all__ = ["LayerRepair", "RepairReport", "repair"]
