"""Checked export: a written file is run beside the model before it is kept."""

from upvit_core.export.int8 import Int8, export_int8
from upvit_core.export.onnx import export_backbone_onnx, export_onnx, save_backbone

__all__ = ["Int8", "export_backbone_onnx", "export_int8", "export_onnx", "save_backbone"]
