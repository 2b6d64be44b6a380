"""Closed-form least squares after surgery."""

from upvit_core.repair.layer_fit import LayerRepair, RepairReport
from upvit_core.repair.repair import repair

__all__ = ["LayerRepair", "RepairReport", "repair"]
