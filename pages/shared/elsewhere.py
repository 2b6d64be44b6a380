"""Where a run is done: here, by Slurm, or on a machine without a browser, with a folder to take there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import streamlit as st

from upvit_core.errors import UPViTError
from upvit_core.runs import slurm
from upvit_core.runs.order import command_of, zipped_order
from upvit_core.runs.spec import RunSpec, SlurmSettings


@dataclass(frozen=True)
class Where:
    """What of a run's spec says where it is done."""

    slurm: SlurmSettings | None = None
    processes: int = 1

    @property
    def changes(self) -> dict[str, Any]:
        if self.slurm is None:
            return {}
        return {"executor": "slurm", "slurm": self.slurm, "processes": self.processes}


HERE = Where()


def choose(key: str) -> Where:
    """Asks only where this machine has a Slurm."""
    if not slurm.available():
        return HERE
    place = st.segmented_control("Where", ["This machine", "Slurm"], default="This machine", required=True,
                                 key=f"{key}-where", persist_state="session")  # fmt: skip
    if place != "Slurm":
        return HERE
    one, two = st.columns(2)
    nodes = one.number_input("Nodes", 1, 1024, 1, key=f"{key}-nodes", persist_state="session")
    gpus = two.number_input(
        "GPUs a node", 0, 64, 0, key=f"{key}-gpus", persist_state="session", help="A process for each; none: the CPU."
    )
    partition = one.text_input(
        "Partition", key=f"{key}-partition", persist_state="session", help="Empty: the cluster's default."
    ).strip()
    minutes = two.number_input(
        "Minutes", 1, 60 * 24 * 30, 24 * 60, key=f"{key}-minutes", persist_state="session",
        help="The job's time limit. A run that needs longer saves before and is queued again.",
    )  # fmt: skip
    if partition and not re.fullmatch(r"[A-Za-z0-9_.,-]{1,100}", partition):
        st.error(f"{partition[:40]!r} is no name of a partition; `sinfo` lists them.")
        partition = ""
    asked = SlurmSettings(
        nodes=int(nodes), gpus_per_node=int(gpus), partition=partition or None, minutes=int(minutes)
    )  # fmt: skip
    return Where(asked, max(int(gpus), 1))


def download(spec: RunSpec, key: str) -> None:
    """The order as a folder for a machine without a browser, and the one command that does it there."""
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:60].strip("-") or "order"

    def pack() -> bytes:
        try:
            return zipped_order(spec, name)
        except (UPViTError, OSError) as error:
            st.session_state[f"{key}-order-error"] = str(error)
            raise

    if said := st.session_state.pop(f"{key}-order-error", ""):
        st.error(said)
    st.download_button(
        "Take it elsewhere", data=pack, file_name=f"{name}.zip", mime="application/zip", on_click="ignore",
        icon=":material/folder_zip:", key=f"{key}-order",
        help="A folder for a machine without a browser: plan, settings, the teacher where it is a file of this "
        "machine, and this one command. The run's folder, copied back into runs/, opens on Runs.",
    )  # fmt: skip
    st.code(command_of(spec, name), language=None, wrap_lines=True)
