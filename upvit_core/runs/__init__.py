"""Training runs: folders on disk, each done by a worker process of its own, one at a time per device."""

from upvit_core.runs.executors.local import LocalExecutor
from upvit_core.runs.folder import Run, RunSummary
from upvit_core.runs.spec import ACTIVE, RESUMABLE, RunSpec, RunState
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import DistillSettings

__all__ = ["ACTIVE", "RESUMABLE", "DistillSettings", "LocalExecutor", "Run", "RunSpec", "RunState", "RunStore"]
__all__ += ["RunSummary"]
