"""A folder of the records that a lesser depth needs: block removals of a model, and scores of a shallower one.

Names of files carry the digest of the model that a record belongs to, so that one folder serves all models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from upvit_core.errors import UPViTError
from upvit_core.planning.depth import digest_at
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

Record = TypeVar("Record")


@dataclass(frozen=True)
class DepthRecords:
    """Records in `folder`, and in the files `bundled` that came with a model. A file that cannot be read is skipped."""

    folder: Path
    bundled: tuple[Path, ...] = ()

    def path_of_model(self, digest: str) -> Path:
        """Path of the block removals of the model with that digest."""
        return self.folder / f"blocks-{digest}.json"

    def path_after_widths(self, plan: PruningPlan) -> Path:
        """Path of the block removals of the model thinned by `plan` (width first)."""
        return self.folder / f"blocks-{plan.model_digest}-{plan.digest}.json"

    def path_at_depth(self, removals: BlockRemovals, depth: int) -> Path:
        """Path of the channel scores of the model cut to `depth` (depth first)."""
        return self.folder / f"depth-{digest_at(removals, depth)}.safetensors"

    def of_model(self, digest: str) -> BlockRemovals | None:
        """Block removals of the whole model with that digest; the folder's before the bundled ones."""
        if not digest:
            return None
        for path in (self.path_of_model(digest), *self.bundled):
            removals = _read(BlockRemovals.load, path)
            if removals is not None and removals.model_digest == digest and not removals.after:
                return removals
        return None

    def after_widths(self, plan: PruningPlan) -> BlockRemovals | None:
        """Block removals of the model thinned by `plan`, if they were scored."""
        return _read(BlockRemovals.load, self.path_after_widths(plan))

    def at_depth(self, removals: BlockRemovals, depth: int) -> ImportanceScores | None:
        """Channel scores of the model cut to `depth`, if there are any."""
        return _read(ImportanceScores.load, self.path_at_depth(removals, depth))


def _read(load: Callable[[Path], Record], path: Path) -> Record | None:
    return _read_once(load, path, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(32)
def _read_once(load: Callable[[Path], Record], path: Path, stamp: int) -> Record | None:
    try:
        return load(path)
    except UPViTError:
        return None
