"""The Distil form: which plans are trained, how and where; then Runs."""

import re
from dataclasses import replace

import streamlit as st

from pages.services import block_removals, compute, folders, jobs, limits, open_model, scoring
from pages.services.launch import (
    HERE,
    LaunchTarget,
    both_bases,
    distill_spec,
    next_devices,
    ratio_sweep,
    start_elastic,
    start_runs,
)
from pages.services.open_model import OpenModel
from pages.services.recipes import (
    HELP,
    MOST_ANSWERS,
    NAMES,
    USUAL,
    Training,
    TrainingKeys,
    requested_training,
    usual,
    workers_field,
)
from pages.tradeoff.measurements import Measurements
from pages.tradeoff.state import state
from pages.widgets import frame, progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.basis import Basis
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import TEXT
from upvit_core.runs import slurm
from upvit_core.runs.bundle import command_of, zipped_order
from upvit_core.runs.memory_check import check_memory_of_shapes, gigabytes
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import PRESETS, DistillSettings

ONE_PLAN, EVERY_SIZE = "This plan", "Every size"
WHICH_HELP = (
    "A sweep: a lighter and a heavier cut too. Both ways: these widths by channels (UP-ViT), and by directions with "
    "repair; Runs draws both starts and curves in one chart. Every size: one model whose first channels are all sizes, "
    "trained at once; `slice` cuts any of them."
)
BUNDLE_HELP = (
    "A folder for a machine without a browser: plan, settings, the teacher where it is a file of this machine, and "
    "this one command. The run's folder, copied back into runs/, opens on Runs."
)


def distil_button(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, found: Measurements) -> None:
    """Draw the button that opens the form; Start queues the runs and leads to Runs."""
    ready = model.has_weights and scores is not None
    needs = "Needs weights and scores: open a checkpoint on Start, then score it on Importance."
    about = duration_words(model, requested_training(model), found) if ready else ""

    def opened(now: bool) -> None:
        state().distilling = now

    st.button(
        f"Distil…{about and f'  from {about} here'}",
        type="primary",
        icon=":material/model_training:",
        width="stretch",
        disabled=not ready,
        help="The thinner model learns from the original." if ready else needs,
        key="distil-box",
        on_click=opened,
        args=(True,),
    )
    if ready and scores is not None and state().distilling:
        dialog = st.dialog("Distil: learn from the original", width="medium", on_dismiss=lambda: opened(False))
        dialog(_form)(model, scores, what_if, found)


def duration_words(model: OpenModel, training: Training, found: Measurements) -> str:
    """`3 min`: the least that training takes here, by the measured speed of both models; "" where it is not measured.

    An image costs a forward pass of the original, and of the thin model three: forward, and backward twice that. What
    else a run does comes on top: on one loaded CPU thread a demo's epoch took 1.5 times as long, evaluations apart.
    """
    speed, count = jobs.result_of(found.speed), training_images(model)
    if speed is None or not count:
        return ""
    seconds = training.epochs * count * (1 / speed.first.images_per_s + 3 / speed.second.images_per_s)
    return units.duration(seconds)


def training_images(model: OpenModel) -> int:
    """The number of training images; 0 until they have been opened."""
    if not model.can_measure:
        return 0
    job = jobs.ensure(f"count {model.data_key}", lambda report: len(model.images("train")), "Counting images")
    return job.result or 0


def _form(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, found: Measurements) -> None:
    kinds = {ONE_PLAN: [what_if], "A sweep of 3": ratio_sweep(what_if)}
    if scores.basis == "channels" and model.shape.has_directions:
        kinds["Both ways"] = both_bases(what_if)
    if model.shape.has_directions:
        kinds[EVERY_SIZE] = [replace(what_if, basis=Basis.DIRECTIONS, repair=True)]
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
    chosen, elastic = kinds[kind or ONE_PLAN], kind == EVERY_SIZE
    shapes = [w.plan(scores, block_removals.records()).shape_after for w in chosen]
    lines = zip(chosen, map(count_parameters, shapes), strict=True)
    text = "\n".join(f"- {w.words} → {units.short(count)} parameters" for w, count in lines)
    st.markdown("- from the whole model to a quarter of its channels, in one run" if elastic else text)
    training = training_form(model, chosen)
    target = target_form()
    if target.slurm is None:
        memory_line(model, chosen, scores, training, target)
    planned = [] if elastic else [scoring.for_planning(model, scores, w) for w in chosen]
    finding = next((job for _, job in planned if job is not None), None)
    if finding is not None and what_if.basis == "channels":
        progress.show(finding)
    elif finding is not None:
        st.caption("The run can start once the directions are computed.")
    records = [record for record, _ in planned if record is not None]
    if words := limits.room_words(RunStore(folders.runs())):
        st.caption(words)
    complete = len(records) == len(planned) and bool(training.images)
    if kind == ONE_PLAN and complete:
        with st.expander("Run on another machine", icon=":material/folder_zip:"):
            bundle_button(distill_spec(model, records[0], what_if, training))
    about = "" if elastic else duration_words(model, training, found)
    with st.container(horizontal=True, vertical_alignment="center", key="distil-foot"):
        label = f"Start · from {about}" if about and len(chosen) == 1 else "Start"
        if st.button(label, type="primary", icon=":material/play_arrow:", key="distil-start", disabled=not complete):
            try:
                opened = open_model.choose_dataset(model, training.images)
                if elastic:
                    start_elastic(opened, what_if, training, target)
                else:
                    start_runs(opened, scores, chosen, training, target)
                state().distilling = False
                frame.go_to()
            except UPViTError as error:
                st.error(plain(error))
        st.caption("The run goes on by itself; this page may be closed.")


def training_form(model: OpenModel, chosen: list[WhatIf]) -> Training:
    """The fields of the training; `chosen` are the plans that will be trained so."""
    start, task, keys = requested_training(model), model.task, TrainingKeys(model.source)
    st.text_input(task.inputs, model.dataset, key=keys.images, help=task.source, persist_state="session")
    one, two = st.columns([0.5, 0.5], vertical_alignment="bottom")
    one.number_input("Epochs", 1, 1000, start.epochs, key=keys.epochs, persist_state="session")
    names = " / ".join(dict.fromkeys(NAMES[usual(model, what_if)] for what_if in chosen))
    with two, st.popover("More", width="stretch"):
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
        if model.task is not TEXT:
            workers_field(keys.workers)
        tip = DistillSettings.model_fields["compile"].description
        st.checkbox("Compile", key=keys.compile, persist_state="session", help=tip)
    training = requested_training(model)
    settings = [training.settings(model, what_if) for what_if in chosen]
    same = len(settings) > 1 and settings.count(settings[0]) == len(settings)
    if same and not training.feature_weight and model.shape.answers == 1 and model.shape.classes:
        likeliest = min(model.shape.classes, MOST_ANSWERS)
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


def memory_line(
    model: OpenModel, chosen: list[WhatIf], scores: ImportanceScores, training: Training, target: LaunchTarget
) -> None:
    """The memory that the run needs of its device, and a warning where that is more than is free."""
    devices = next_devices(target.device, target.processes)
    if not devices:
        return
    checks = []
    for what_if in chosen:
        after = what_if.plan(scores, block_removals.records()).shape_after
        checks.append(
            check_memory_of_shapes(model.shape, after, training.settings(model, what_if), devices, target.processes)
        )
    most = max(checks, key=lambda check: check.needed)
    if most.sentence:
        st.warning(plain(most.sentence), icon=":material/memory:")
    else:
        free, where = gigabytes(most.device.free), plain(most.device.label)
        st.caption(f"Needs about {gigabytes(most.needed)} of the {free} free on {where}.")


def target_form() -> LaunchTarget:
    """The form that asks where the run executes; it has a choice only on a machine with a Slurm or several GPUs."""
    if not slurm.available():
        return _device_form()
    places = ["This machine", "Slurm"]
    place = st.segmented_control(
        "Where", places, default=places[0], required=True, key="distil-where", persist_state="session"
    )
    if place != "Slurm":
        return _device_form()
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


def _device_form() -> LaunchTarget:
    """The number of GPUs of this machine that train the run, a process each, and the first of them."""
    gpus = {found.name: found.label for found in compute.choices() if found.name != "cpu"}
    if len(gpus) < 2:
        return HERE
    one, two = st.columns(2)
    labels = {"auto": "the freest", **gpus}
    count = one.number_input(
        "GPUs", 1, len(gpus), 1, key="distil-gpus-here", persist_state="session", help="A process for each."
    )
    device = two.selectbox(
        "From", list(labels), format_func=lambda name: plain(labels[name]), key="distil-device", persist_state="session"
    )
    first = list(gpus).index(device) if device in gpus else 0
    return LaunchTarget(processes=min(int(count), len(gpus) - first), device=device)


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
        "Download the order",
        data=pack,
        file_name=f"{name}.zip",
        mime="application/zip",
        on_click="ignore",
        icon=":material/folder_zip:",
        key="distil-order",
        help=BUNDLE_HELP,
    )
    st.code(command_of(spec, name), language=None, wrap_lines=True)
