"""Folders of this checkout."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DEMO_FOLDER = PROJECT / "assets" / "demo"
