"""What can be done with a plan: prune and download, distil, a sweep."""

from __future__ import annotations

import re
from dataclasses import replace

import streamlit as st

from pages.services import block_removals, open_model, scoring
from pages.services.launch import HERE, LaunchTarget, both_bases, distill_spec, next_device, ratio_sweep, start_runs
from pages.services.open_model import OpenModel
from pages.services.recipes import HELP, MOST_ANSWERS, NAMES, USUAL, Training, asked, usual
from pages.tradeoff.state import state
from pages.widgets import frame, progress
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs import slurm
from upvit_core.runs.bundle import command_of, zipped_order
from upvit_core.runs.memory_check import check_memory_of_shapes, gigabytes
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.training.settings import PRESETS


def distil_button(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf) -> None:
    """ "Distil this" and "Distil a sweep of 3": a small form, then Runs."""
    ready = model.has_weights and scores is not None
    why = "" if ready else "Needs weights and scores: open a checkpoint on the Model page, then score it on Importance."
    with st.popover(
        "Distil…", type="primary", icon=":material/model_training:", width="stretch", disabled=not ready,
        help=why or None, key="distil-box", on_change="rerun",
    ) as box:  # fmt: skip
        if not ready or scores is None or not box.open:
            return
        st.markdown("The thinner model learns from the original. The run goes on by itself; this page may be closed.")
        kinds = {"This plan": [what_if], "A sweep of 3": ratio_sweep(what_if)}
        if scores.basis == "channels" and model.shape.has_directions:
            kinds["Both ways"] = both_bases(what_if)
        many = st.segmented_control(
            "What", list(kinds), default="This plan", required=True, wrap=True, key="distil-what",
            persist_state="session",
            help="A sweep: a lighter and a heavier cut too. Both ways: these widths by channels (UP-ViT), and by "
            "directions with repair; Runs draws both starts and climbs in one chart.",
        )  # fmt: skip
        chosen = kinds[many]
        sizes = [count_parameters(w.plan(scores, block_removals.records()).shape_after) for w in chosen]
        st.markdown(
            "\n".join(f"- {w.words} → {units.short(size)} parameters" for w, size in zip(chosen, sizes, strict=True))
        )
        training = form(model, chosen)
        _memory(model, chosen, scores, training)
        where = choose("distil")
        planned = [scoring.for_planning(model, scores, what_if) for what_if in chosen]
        finding = next((job for _, job in planned if job is not None), None)
        if finding is not None and what_if.basis == "channels":
            progress.show(finding)
        elif finding is not None:
            st.caption("The run can start once the directions are found.")
        found = [record for record, _ in planned if record is not None]
        complete = len(found) == len(chosen) and bool(training.images)
        if st.button("Start", type="primary", icon=":material/play_arrow:", key="distil-start", disabled=not complete):
            try:
                start_runs(open_model.choose_dataset(model, training.images), scores, chosen, training, where)
                frame.go_to_runs()
            except UPViTError as error:
                st.error(str(error))
        if many == "This plan" and complete:
            download(distill_spec(model, found[0], what_if, training), "distil")


def _memory(model: OpenModel, chosen: list[WhatIf], scores: ImportanceScores, training: Training) -> None:
    """What the run needs of the device it will get, and a warning where that is more than is free."""
    device = next_device()
    if device is None:
        return
    fits = [
        check_memory_of_shapes(
            model.shape,
            what_if.plan(scores, block_removals.records()).shape_after,
            training.settings(model, what_if),
            device,
        )
        for what_if in chosen
    ]
    most = max(fits, key=lambda fit: fit.needed)
    if most.sentence:
        st.warning(most.sentence, icon=":material/memory:")
    else:
        st.caption(f"Needs about {gigabytes(most.needed)} of the {gigabytes(device.free)} free on {device.label}.")


def choose(key: str) -> LaunchTarget:
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
    return LaunchTarget(asked, max(int(gpus), 1))


def download(spec: RunSpec, key: str) -> None:
    """The order as a folder for a machine without a browser, and the one command that does it there."""
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:60].strip("-") or "order"

    def pack() -> bytes:
        try:
            return zipped_order(spec, name)
        except (UPViTError, OSError) as error:
            state().bundle_error = str(error)
            raise

    if error := state().bundle_error:
        state().bundle_error = ""
        st.error(error)
    st.download_button(
        "Take it elsewhere", data=pack, file_name=f"{name}.zip", mime="application/zip", on_click="ignore",
        icon=":material/folder_zip:", key=f"{key}-order",
        help="A folder for a machine without a browser: plan, settings, the teacher where it is a file of this "
        "machine, and this one command. The run's folder, copied back into runs/, opens on Runs.",
    )  # fmt: skip
    st.code(command_of(spec, name), language=None, wrap_lines=True)


def form(model: OpenModel, chosen: list[WhatIf]) -> Training:
    """The inputs; `chosen` are the starts that will be trained so."""
    start, task = asked(model), model.task
    st.text_input(
        task.inputs, value=model.dataset, key=f"distil-images-{model.source}", help=task.source,
        persist_state="session",
    )  # fmt: skip
    one, two = st.columns([0.35, 0.65])
    one.number_input("Epochs", 1, 1000, start.epochs, key=f"distil-epochs-{model.source}", persist_state="session")
    own = list(dict.fromkeys(NAMES[usual(model, what_if)] for what_if in chosen))
    two.selectbox(
        "Recipe", [USUAL, *PRESETS], key="distil-recipe", help=HELP, persist_state="session",
        format_func=lambda name: f"usual: {' / '.join(own)}" if name == USUAL else NAMES[name],
    )  # fmt: skip
    st.number_input(
        "Weight of the last feature", 0.0, 1000.0, 0.0, step=0.5, key="distil-features", persist_state="session",
        help="Above 0, what the classifier reads is matched too: the mean square by which the student's last "
        "feature, through a linear map that is learnt with it, misses the teacher's.",
    )  # fmt: skip
    training = asked(model)
    ways = [training.settings(model, what_if) for what_if in chosen]
    same = len(ways) > 1 and ways.count(ways[0]) == len(ways)
    if same and not training.feature_weight and model.shape.answers == 1:
        kept = st.toggle(
            "Ask the teacher once", key="distil-answers", persist_state="session",
            help="The first run stores the teacher's answers on every image of every epoch (the "
            f"{min(model.shape.num_classes, MOST_ANSWERS)} likeliest classes); the others read them instead of asking "
            "again. They are removed after the last run.",
        )  # fmt: skip
        return replace(training, answers_kept=kept)
    return training
