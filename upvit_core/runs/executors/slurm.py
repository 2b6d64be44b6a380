"""Runs as Slurm jobs, through submitit: a process for every task, requeued when pre-empted or out of time.

The run folder has to lie where all nodes see it. A job that starts again goes on from the run's last checkpoint.
"""

import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from upvit_core.errors import RunError
from upvit_core.ranks import python_path
from upvit_core.runs.executors.queueing import queued
from upvit_core.runs.folder import Run
from upvit_core.runs.slurm import available
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.runs.store import RunStore

JOB_FOLDER = "slurm"
CPUS_PER_GPU = 8  # that load images for it, where nothing else is asked for


@dataclass(frozen=True)
class SlurmWorker:
    """The function that each task of the job calls; submitit pickles it."""

    folder: str

    def __call__(self) -> int:
        from upvit_core.ranks import rank
        from upvit_core.runs.worker import output_to, start

        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            join_tasks()
        folder = Path(self.folder)
        if rank() > 0:
            status = start(folder)
        else:
            with output_to(folder / "log.txt"):
                status = start(folder)
        if status:
            raise SystemExit(status)  # srun ends the other tasks
        return status


def join_tasks() -> None:
    """Tell torch of the job's other tasks. A node's name that cannot be looked up gives way to the address of the first
    node, which launched the tasks.
    """
    from submitit.helpers import TorchDistributedEnvironment

    first = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).master_addr
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", first)


class SlurmExecutor:
    """Submits each run as one job of `nodes` × `processes` tasks."""

    def __init__(self, store: RunStore):
        self.store = store

    def submit(self, run: Run) -> None:
        """Queue a run and hand it to Slurm. Raises RunError where it has a worker already, or Slurm refuses it."""
        with queued(run) as state:
            run.write_state(state.model_copy(update={"job": self._submit(run)}))

    def _submit(self, run: Run) -> str:
        if not available():
            raise RunError("There is no Slurm on this machine (no sbatch); choose executor local.")
        import submitit

        executor = submitit.SlurmExecutor(folder=run.folder / JOB_FOLDER)
        try:
            executor.update_parameters(**parameters(run.id, run.spec))
            return str(executor.submit(SlurmWorker(str(run.folder))).job_id)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            lines = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
            raise RunError(
                f"Slurm refused the run ({lines[-1].strip()}); change the settings and resume it."
            ) from error


def parameters(name: str, spec: RunSpec) -> dict[str, object]:
    """The parameters that submitit writes into the batch script."""
    asked = spec.slurm or SlurmSettings()
    optional: dict[str, object] = {
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "cpus_per_task": asked.cpus_per_process or (CPUS_PER_GPU if asked.gpus_per_node else None),
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
    }
    return {
        "job_name": name,
        "nodes": asked.nodes,
        "ntasks_per_node": spec.processes,
        "time": asked.minutes,
        "signal_delay_s": asked.warning_seconds,
        "stderr_to_stdout": True,
        "setup": setup(),
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True},
        **{key: value for key, value in optional.items() if value is not None},
    }


def setup() -> list[str]:
    """Lines of the batch script before the tasks: they find this package wherever they start."""
    ranks = "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    return [f"export PYTHONPATH={shlex.quote(python_path())}", "export PYTHONUNBUFFERED=1", ranks]
