"""Executors start the worker process of a run: one Protocol, one module each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from upvit_core.runs.spec import RunSpec

if TYPE_CHECKING:
    from upvit_core.runs.folder import Run
    from upvit_core.runs.store import RunStore


class Executor(Protocol):
    """Starts workers; their progress is read from the run folder."""

    def submit(self, run: Run) -> None:
        """Queue a run and start its worker. Raises RunError where it has one already, or none can be started."""


def executor_for(store: RunStore, spec: RunSpec) -> Executor:
    """The executor that a run asks for."""
    if spec.executor == "slurm":
        from upvit_core.runs.executors.slurm import SlurmExecutor

        return SlurmExecutor(store)
    from upvit_core.runs.executors.local import LocalExecutor

    return LocalExecutor(store)
