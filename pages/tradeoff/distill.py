"""The Distil form: which plans are trained, how and where; then Runs."""

import re
from dataclasses import replace

import streamlit as st

from pages.services import block_removals, open_model, scoring
from pages.services.launch import HERE, LaunchTarget, both_bases, distill_spec, next_device, ratio_sweep, start_runs
from pages.services.open_model import OpenModel
from pages.services.recipes import HELP, MOST_ANSWERS, NAMES, USUAL, Training, TrainingKeys, requested_training, usual
from pages.tradeoff.state import state
from pages.widgets import frame, progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs import slurm
from upvit_core.runs.bundle import command_of, zipped_order
from upvit_core.runs.memory_check import check_memory_of_shapes, gigabytes
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.training.settings import PRESETS, DistillSettings

ONE_PLAN = "This plan"
WHICH_HELP = (
    "A sweep: a lighter and a heavier cut too. Both ways: these widths by channels (UP-ViT), and by directions with "
    "repair; Runs draws both starts and curves in one chart."
)
BUNDLE_HELP = (
    "A folder for a machine without a browser: plan, settings, the teacher where it is a file of this machine, and "
    "this one command. The run's folder, copied back into runs/, opens on Runs."
)


def distil_button(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf) -> None:
    """Draw the button with its form; Start queues the runs and leads to Runs."""
    ready = model.has_weights and scores is not None
    needs = "Needs weights and scores: open a checkpoint on the Model page, then score it on Importance."
    with st.popover(
        "Distil…",
        type="primary",
        icon=":material/model_training:",
        width="stretch",
        disabled=not ready,
        help=None if ready else needs,
        key="distil-box",
        on_change="rerun",
    ) as box:
        if ready and scores is not None and box.open:
            _form(model, scores, what_if)


def _form(model: OpenModel, scores: ImportanceScores, what_if: WhatIf) -> None:
    st.markdown("The thinner model learns from the original. The run goes on by itself; this page may be closed.")
    kinds = {ONE_PLAN: [what_if], "A sweep of 3": ratio_sweep(what_if)}
    if scores.basis == "channels" and model.shape.has_directions:
        kinds["Both ways"] = both_bases(what_if)
    kind = st.segmented_control(
        "What",
        list(kinds),
        default=ONE_PLAN,
        required=True,
        wrap=True,
        key="distil-what",
        persist_state="session",
        help=WHICH_HELP,
    )
    chosen = kinds[kind or ONE_PLAN]
    shapes = [w.plan(scores, block_removals.records()).shape_after for w in chosen]
    lines = zip(chosen, map(count_parameters, shapes), strict=True)
    st.markdown("\n".join(f"- {w.words} → {units.short(count)} parameters" for w, count in lines))
    training = training_form(model, chosen)
    memory_line(model, chosen, scores, training)
    target = target_form()
    planned = [scoring.for_planning(model, scores, w) for w in chosen]
    finding = next((job for _, job in planned if job is not None), None)
    if finding is not None and what_if.basis == "channels":
        progress.show(finding)
    elif finding is not None:
        st.caption("The run can start once the directions are computed.")
    records = [record for record, _ in planned if record is not None]
    complete = len(records) == len(chosen) and bool(training.images)
    if st.button("Start", type="primary", icon=":material/play_arrow:", key="distil-start", disabled=not complete):
        try:
            start_runs(open_model.choose_dataset(model, training.images), scores, chosen, training, target)
            frame.go_to_runs()
        except UPViTError as error:
            st.error(plain(error))
    if kind == ONE_PLAN and complete:
        bundle_button(distill_spec(model, records[0], what_if, training))


def training_form(model: OpenModel, chosen: list[WhatIf]) -> Training:
    """The fields of the training; `chosen` are the plans that will be trained so."""
    start, task, keys = requested_training(model), model.task, TrainingKeys(model.source)
    st.text_input(task.inputs, model.dataset, key=keys.images, help=task.source, persist_state="session")
    one, two = st.columns([0.35, 0.65])
    one.number_input("Epochs", 1, 1000, start.epochs, key=keys.epochs, persist_state="session")
    names = " / ".join(dict.fromkeys(NAMES[usual(model, what_if)] for what_if in chosen))
    with two:
        st.selectbox(
            "Recipe",
            [USUAL, *PRESETS],
            key=keys.recipe,
            help=HELP,
            persist_state="session",
            format_func=lambda name: f"usual: {names}" if name == USUAL else NAMES[name],
        )
    label, tip = "Weight of the last feature", DistillSettings.model_fields["feature_weight"].description
    st.number_input(label, 0.0, 1000.0, 0.0, 0.5, key=keys.features, persist_state="session", help=tip)
    training = requested_training(model)
    settings = [training.settings(model, what_if) for what_if in chosen]
    same = len(settings) > 1 and settings.count(settings[0]) == len(settings)
    if same and not training.feature_weight and model.shape.answers == 1:
        likeliest = min(model.shape.num_classes, MOST_ANSWERS)
        kept = st.toggle(
            "Ask the teacher once",
            key="distil-answers",
            persist_state="session",
            help="The first run stores the teacher's logits for every image of every epoch (the "
            f"{likeliest} likeliest classes); the others read them instead of computing them again. They are removed "
            "after the last run.",
        )
        return replace(training, answers_kept=kept)
    return training


def memory_line(model: OpenModel, chosen: list[WhatIf], scores: ImportanceScores, training: Training) -> None:
    """The memory that the run needs of its device, and a warning where that is more than is free."""
    device = next_device()
    if device is None:
        return
    checks = []
    for what_if in chosen:
        after = what_if.plan(scores, block_removals.records()).shape_after
        checks.append(check_memory_of_shapes(model.shape, after, training.settings(model, what_if), device))
    most = max(checks, key=lambda check: check.needed)
    if most.sentence:
        st.warning(plain(most.sentence), icon=":material/memory:")
    else:
        st.caption(
            f"Needs about {gigabytes(most.needed)} of the {gigabytes(device.free)} free on {plain(device.label)}."
        )


def target_form() -> LaunchTarget:
    """The form that asks where the run executes; it has a choice only if this machine has a Slurm."""
    if not slurm.available():
        return HERE
    places = ["This machine", "Slurm"]
    place = st.segmented_control(
        "Where", places, default=places[0], required=True, key="distil-where", persist_state="session"
    )
    if place != "Slurm":
        return HERE
    one, two = st.columns(2)
    gpu_help = "A process for each; none: the CPU."
    minutes_help = "The job's time limit. A run that needs longer saves before and is queued again."
    nodes = one.number_input("Nodes", 1, 1024, 1, key="distil-nodes", persist_state="session")
    gpus = two.number_input("GPUs a node", 0, 64, 0, key="distil-gpus", persist_state="session", help=gpu_help)
    partition = one.text_input(
        "Partition", key="distil-partition", persist_state="session", help="Empty: the cluster's default."
    ).strip()
    minutes = two.number_input(
        "Minutes", 1, 60 * 24 * 30, 24 * 60, key="distil-minutes", persist_state="session", help=minutes_help
    )
    if partition and not re.fullmatch(r"[A-Za-z0-9_.,-]{1,100}", partition):
        st.error(f"{plain(repr(partition[:40]))} is not a name of a partition; `sinfo` lists them.")
        partition = ""
    settings = SlurmSettings(
        nodes=int(nodes), gpus_per_node=int(gpus), partition=partition or None, minutes=int(minutes)
    )
    return LaunchTarget(settings, max(int(gpus), 1))


def bundle_button(spec: RunSpec) -> None:
    """The run as a folder for a machine without a browser, and the one command that executes it there."""
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:60].strip("-") or "order"

    def pack() -> bytes:
        try:
            return zipped_order(spec, name)
        except (UPViTError, OSError) as error:
            state().bundle_error = str(error)
            raise

    if error := state().bundle_error:
        state().bundle_error = ""
        st.error(plain(error))
    st.download_button(
        "Take it elsewhere",
        data=pack,
        file_name=f"{name}.zip",
        mime="application/zip",
        on_click="ignore",
        icon=":material/folder_zip:",
        key="distil-order",
        help=BUNDLE_HELP,
    )
    st.code(command_of(spec, name), language=None, wrap_lines=True)
