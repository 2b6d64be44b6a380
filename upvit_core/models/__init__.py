"""Architectures: the only place that knows a model's attribute names, and how one is read from and written to disk.

Import from the modules (`layout` needs no torch; `checkpoint` brings torch and timm).
"""
