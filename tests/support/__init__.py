"""Helpers of the tests: `from tests.support.tiny import tiny`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
