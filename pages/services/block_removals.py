"""The studio's records of block removals: those made here, and the one that came with the demo."""

from pages.services import folders
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.depth_records import DepthRecords


def records() -> DepthRecords:
    return DepthRecords(folders.scores(), (DEMO_FOLDER / "blocks.json",))
