"""Closed-form least squares after surgery."""

from upvit_core.repair.repair import LayerRepair, RepairReport, repair

__all__ = ["LayerRepair", "RepairReport", "repair"]
