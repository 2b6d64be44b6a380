"""New run: learn from the original at the current plan, or take the original and a pruned one to other images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from pages.services import folders, good_plans, launch, limits, maps, recipes, run_data, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import frame, progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.source import Source
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import FINETUNE_PRESETS, DistillSettings

KINDS = ("Learn from the original", "Go to other images")
KIND = "new-run-kind"  # key of the widget
RECIPES = {"demo": "minutes on a CPU", "finetune": "careful: smaller steps towards the first layers"}


def button() -> None:
    if st.button("New run", type="primary", icon=":material/add:", key="new-run"):
        session().asking = "new", ""
        st.rerun()


def dialog(store: RunStore, model: OpenModel) -> None:
    """The dialog, where it was asked for."""
    if session().asking != ("new", ""):
        return

    def forget() -> None:
        session().asking = None

    @st.dialog("New run", on_dismiss=forget)
    def ask() -> None:
        kind = st.segmented_control(
            "What", KINDS, default=KINDS[0], required=True, key=KIND, label_visibility="collapsed"
        )
        (distil if kind != KINDS[1] else transfer)(store, model)
        if words := limits.room_words(store):
            st.caption(words)

    ask()


def started() -> None:
    session().asking = None
    st.rerun()


def distil(store: RunStore, model: OpenModel) -> None:
    """The plan under the sliders, with one button that starts it."""
    scores, now = scoring.current(model), slider_state.current(model)
    if model.can_measure and scores is not None:
        st.markdown(f"{plain(model.name)} is cut at **{plain(now.words)}** and learns from the original.")
        planned, finding = scoring.for_planning(model, scores, now)
        progress.show(finding)
        training = recipes.requested_training(model)
        label, off = f"Distil {plain(model.name)} at {now.words}", planned is None
        if st.button(label, type="primary", icon=":material/play_arrow:", key="first-run", disabled=off):
            order(model, scores, now, training)
        st.caption(f"{training.epochs} epochs on {plain(Path(training.images).name)}; it goes on by itself.")
        if planned is not None:
            next_three(model, scores, planned, now, training)
    else:
        st.markdown("Open a model with weights and scores first, then choose a plan.")
    frame.page_link("pages/tradeoff/page.py", "Choose another plan, recipe or a sweep on Trade-off")


def order(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, training: recipes.Training) -> None:
    """Start the run of a plan and close the dialog; an error is told in it."""
    try:
        launch.start_runs(model, scores, [what_if], training)
        started()
    except UPViTError as error:
        st.error(plain(error))


def next_three(
    model: OpenModel, scores: ImportanceScores, planned: ImportanceScores, now: WhatIf, training: recipes.Training
) -> None:
    """The plans that would add most to what is known, each with a button that starts it."""
    known = maps.find(model, planned, now)
    st.markdown("**Next three runs**")
    if (reading := maps.reading(model, planned, now)) is not None:
        progress.show(reading)
    if known is None:
        if reading is None:
            st.caption("They are proposed once the map of this model is measured, on Trade-off under Map.")
        return
    if (candidates := progress.show(good_plans.find(model, planned, now))) is None:
        return
    task, whole = model.task, count_macs(model.shape)
    proposed = good_plans.next_runs(model, known, candidates)
    for number, each in enumerate(proposed):
        plan = each.candidate
        when = "before training" if each.epochs is None else f"after {each.epochs:d} epochs"
        label = f"{units.percent(plan.macs / whole)} of the MACs: {each.low:.1f} – {task.format(each.high)}, {when}"
        if st.button(
            label, icon=":material/play_arrow:", key=f"next-{number}", width="stretch", help=plain(plan.what_if.words)
        ):
            order(model, scores, plan.what_if, training)
    st.caption(
        f"They add most to the front of accuracy against MACs, of plans within {good_plans.MOST_LOST:.0f} "
        f"{'points' if task.in_percent else '%'} of the original (expected hypervolume improvement). Bands of 80 % by "
        "the map, and by the forecast from finished runs where there are enough."
        if proposed
        else "No plan is expected to add to the front of what was run."
    )


def pruned_models(summaries: Sequence[RunSummary], model: OpenModel) -> dict[str, str]:
    """Folders of finished students of the open model, by the name of their run, newest first."""
    label, teachers = run_data.names(summaries), (model.model, str(Path(model.model).resolve()))
    done = [s for s in summaries if s.spec is not None and s.spec.kind == "distill" and s.state.state == "done"]
    folder = Path(folders.runs().resolve())
    return {str(folder / s.id / "model"): label[s.id] for s in done if s.spec and s.spec.teacher in teachers}


def transfer(store: RunStore, model: OpenModel) -> None:
    """The form of fine-tuning: models, images and recipe, and Start."""
    if not model.task.has_classes or not model.has_weights:
        needs = "reads text, so it has no classes" if not model.task.has_classes else "has a shape and no weights"
        st.info(f"{plain(model.name)} {needs}. Open a model of images with weights first.")
        return
    students = pruned_models(store.list(), model)
    st.markdown(f"Does pruning cost what {plain(model.name)} has learned? Both learn new classes, without a teacher.")
    folder = st.selectbox(
        "Pruned model",
        [*students, ""],
        key="transfer-student",
        accept_new_options=True,
        format_func=lambda path: students.get(path, path or "none: the original alone"),
        help="A finished run of this model, or a folder typed here.",
    )
    tip = "A folder of class folders (with train/ and val/, or split for you), an archive of one, or a timm name."
    images = st.text_input("Images", key="transfer-images", placeholder="/data/cifar10.tar.gz", help=tip).strip()
    pixels, colour = model.shape.img_size[0], "grey" if model.shape.in_chans == 1 else "colour"
    st.caption(f"They are resized to {pixels} pixels and made {colour}, as {plain(model.name)} reads images.")
    left, right = st.columns([0.4, 0.6])
    epochs = left.number_input("Epochs", 1, 1000, 2, key="transfer-epochs")
    tip = "Head only leaves the backbone unchanged: the result shows how good its features are."
    what = right.selectbox("Train", ["everything", "head only"], key="transfer-what", help=tip)
    usual, titles = 0 if model.shape.is_small else 1, RECIPES.__getitem__
    left, right = st.columns([0.7, 0.3], vertical_alignment="bottom")
    recipe = left.selectbox("Recipe", list(RECIPES), usual, format_func=titles, key="transfer-recipe")
    with right, st.popover("More", width="stretch"):
        workers = recipes.workers_field("transfer-workers")
    tip, label = "Fresh weights, the same steps: a baseline.", "Also the pruned shape from scratch"
    scratch = st.checkbox(label, key="transfer-scratch", disabled=not folder, help=tip)
    icon = ":material/play_arrow:"
    if st.button("Start", type="primary", icon=icon, key="transfer-start", disabled=not images):
        changes = {"head_only": what == "head only", "workers": workers}
        settings = FINETUNE_PRESETS[recipe].model_copy(update=changes)
        try:
            start(store, model, folder or "", TransferSettings(images, int(epochs), settings, scratch))
            started()
        except UPViTError as error:
            st.error(plain(error))


@dataclass(frozen=True)
class TransferSettings:
    """The fields of the form that all runs of a comparison share."""

    images: str
    epochs: int
    settings: DistillSettings
    from_scratch: bool  # the pruned shape is trained from fresh weights too


def start(store: RunStore, model: OpenModel, folder: str, shared: TransferSettings) -> None:
    """Start a run for each model in one group. Raises UPViTError where the host's limits forbid it."""
    images, scratch, settings = shared.images, shared.from_scratch, shared.settings
    for path in filter(None, (images, folder)):
        limits.confine(Source.parse(path).path)
    where = Path(images).name.split(".")[0]
    wanted = [(model.name, model.model, settings)]
    if folder:
        pruned = run_data.model_name(folder)
        if scratch:
            fresh = settings.model_copy(update={"from_scratch": True, "head_only": False})
            wanted.append((f"{pruned} from scratch", folder, fresh))
        wanted.insert(1, (pruned, folder, settings))
    known = {s.spec.group for s in store.list() if s.spec is not None and s.spec.kind == "finetune"}
    specs = [
        RunSpec(
            kind="finetune",
            name=f"{name} to {where}"[:200],
            student=source,
            data=images,
            epochs=shared.epochs,
            settings=chosen,
            group=f"{model.name} to {where} {len(known) + 1}"[:200],
        )
        for name, source, chosen in wanted
    ]
    launch.start(store, specs)
