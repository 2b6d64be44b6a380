"""Transfer: the original and a pruned model fine-tuned on other images, side by side, live."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.services import folders, launch, limits, run_data
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import charts, frame, run_actions
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.figures.training_curves import GLYPHS, plot_training_curves
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.source import Source
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RESUMABLE, RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import FINETUNE_PRESETS, DistillSettings

REFRESH = "2s"
GROUP = "transfer-group"  # key of a widget
RECIPES = {"demo": "minutes on a CPU", "finetune": "careful: smaller steps towards the first layers"}
FORMATS = {
    "Top-1 before, %": "%.2f", "Top-1 now, %": "%.2f", "to the original": "%+.2f", "Images/s": "%.0f",
    "Test images": "%d", "Top-1 on all, %": "%.2f", "All": "%d",
}  # fmt: skip


def pruned_models(summaries: Sequence[RunSummary], model: OpenModel) -> dict[str, str]:
    """Folders of finished students of the open model, by the name of their run, newest first."""
    label, teachers = run_data.names(summaries), (model.model, str(Path(model.model).resolve()))
    done = [s for s in summaries if s.spec is not None and s.spec.kind == "distill" and s.state.state == "done"]
    folder = Path(folders.runs().resolve())
    return {str(folder / s.id / "model"): label[s.id] for s in done if s.spec and s.spec.teacher in teachers}


def form(store: RunStore, summaries: Sequence[RunSummary], model: OpenModel) -> None:
    """Draw the form: models, images and recipe, and Start."""
    students = pruned_models(summaries, model)
    with st.container(border=True):
        st.markdown(f"**Take {plain(model.name)} and a pruned one to other images**")
        folder = st.selectbox(
            "Pruned model",
            [*students, ""],
            key="transfer-student",
            accept_new_options=True,
            format_func=lambda path: students.get(path, path or "none: the original alone"),
            help="A finished run of this model, or a folder typed here.",
        )
        if not students:
            st.caption("No run of this model is done yet; distil one on Trade-off, or type a folder.")
        tip = "A folder of class folders (with train/ and val/, or split for you), an archive of one, or a timm name."
        placeholder = "/data/cifar10.tar.gz"
        images = st.text_input("Images", key="transfer-images", placeholder=placeholder, help=tip).strip()
        pixels, colour = model.shape.img_size[0], "grey" if model.shape.in_chans == 1 else "colour"
        st.caption(f"They are resized to {pixels} pixels and made {colour}, as {plain(model.name)} reads images.")
        left, right = st.columns([0.4, 0.6])
        epochs = left.number_input("Epochs", 1, 1000, 2, key="transfer-epochs")
        tip = "Head only leaves the backbone unchanged: the result shows how good its features are."
        what = right.selectbox("Train", ["everything", "head only"], key="transfer-what", help=tip)
        usual, titles = 0 if model.shape.is_small else 1, RECIPES.__getitem__
        recipe = st.selectbox("Recipe", list(RECIPES), usual, format_func=titles, key="transfer-recipe")
        tip, label = "Fresh weights, the same steps: a baseline.", "Also the pruned shape from scratch"
        scratch = st.checkbox(label, key="transfer-scratch", disabled=not folder, help=tip)
        off, icon = not images or not model.has_weights, ":material/play_arrow:"
        if st.button("Start", type="primary", icon=icon, key="transfer-start", width="stretch", disabled=off):
            settings = FINETUNE_PRESETS[recipe].model_copy(update={"head_only": what == "head only"})
            try:
                start(store, model, folder or "", TransferSettings(images, int(epochs), settings, scratch))
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
    group = f"{model.name} to {where} {len(groups(store.list())) + 1}"
    specs = [
        RunSpec(
            kind="finetune",
            name=f"{name} to {where}"[:200],
            student=source,
            data=images,
            epochs=shared.epochs,
            settings=chosen,
            group=group[:200],
        )
        for name, source, chosen in wanted
    ]
    launch.start(store, specs)
    st.session_state[GROUP] = group
    st.rerun()


def groups(summaries: Sequence[RunSummary]) -> list[str]:
    """Names of all comparisons, newest first; a single run, as the command line starts, is one too."""
    specs = [(s.id, s.spec) for s in summaries if s.spec is not None and s.spec.kind == "finetune"]
    return list(dict.fromkeys(spec.group or run_id for run_id, spec in specs))


def comparison(store: RunStore, group: str) -> None:
    """Draw curves, states and table of one comparison, updated while it is active."""
    every = store.list()
    chosen = [s for s in reversed(every) if s.spec is not None and group in (s.spec.group, s.id)]
    if session().active_transfers != any(s.state.is_active for s in chosen):
        st.rerun()
    run_actions.show_message()
    curves = run_data.curves(store, chosen, every)
    charts.show(plot_training_curves(curves, "top1", charts.theme(), height=380), "transfer-curves")
    for number, (curve, summary) in enumerate(zip(curves, chosen, strict=True)):
        with st.container(horizontal=True, vertical_alignment="center", key=f"transfer-{summary.id}"):
            now, glyph = run_data.state_words(summary.state), GLYPHS[number % len(GLYPHS)]
            st.html(f'<span style="color:{curve.colour}">{glyph}</span> <b>{escape(curve.label)}</b> · {escape(now)}')
            run_actions.button_of(store, summary)
        if summary.state.state in RESUMABLE:
            st.caption(plain(summary.reason))
    table(store, chosen, [curve.label for curve in curves])


def table(store: RunStore, chosen: Sequence[RunSummary], labels: Sequence[str]) -> None:
    """Draw size, speed and top-1 of each model, with differences to the first, the original."""
    lines: list[dict[str, object]] = []
    first: float | None = None
    for summary, label in zip(chosen, labels, strict=True):
        assert summary.spec is not None
        points = run_data.rows().points(store, summary.id)
        tested, whole = points.evals, points.whole
        shape = run_data.shape_of(store, summary.id, summary.spec)
        now = tested[-1]["top1"] if tested else None
        first = now if not lines else first
        lines.append(
            {
                "Run": label,
                "Parameters": units.short(count_parameters(shape)) if shape else "",
                "MACs": units.short(count_macs(shape)) if shape else "",
                "Top-1 before, %": tested[0]["top1"] if tested else None,
                "Top-1 now, %": now,
                "to the original": None if now is None or first is None or not lines else now - first,
                "Images/s": tested[0].get("images_per_s") if tested else None,
                "Test images": tested[-1]["images"] if tested else None,
                "Top-1 on all, %": whole["top1"] if whole else None,
                "All": whole["images"] if whole else None,
                "Epochs": round(summary.state.epoch, 2),
                "Seconds": round(summary.state.seconds),
            }
        )
    if not any(line["All"] for line in lines):
        lines = [{name: line[name] for name in line if name not in ("Top-1 on all, %", "All")} for line in lines]
    numbers = {name: st.column_config.NumberColumn(format=form) for name, form in FORMATS.items()}
    st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=numbers, width="stretch", placeholder="—")
    st.caption("Measured on the test split of these images. Parameters and MACs are with each model's first head.")


with frame.page(
    "Transfer",
    "Fine-tune the original and a pruned model on other images: does pruning cost what they have learnt?",
    "Fine-tuning: the backbone's weights, a new head for the new classes, no teacher; the same settings for all.",
):
    store = RunStore(folders.runs())
    model = frame.current()
    left, right = st.columns([0.31, 0.69], gap="medium")
    with left:
        if not model.task.has_classes:
            text = f"{plain(model.name)} reads text, so it has no classes. Distil it on the other text instead."
            st.info(f"{text} Open a model of images for this page.", icon=":material/translate:")
        elif model.has_weights:
            form(store, store.list(), model)
        else:
            st.info("Open a model with weights first; this one has only a shape.", icon=":material/memory:")
            frame.page_link("pages/model/page.py", "Open one on Model")
    with right:
        known = groups(store.list())
        if not known and model.task.has_classes:
            text = "Two curves will be here: top-1 of the original and of the pruned model on the new classes."
            frame.awaited(text, icon=":material/moving:")
        elif known:
            if st.session_state.get(GROUP) not in known:
                st.session_state[GROUP] = known[0]
            names = {s.id: s.name for s in store.list()}
            group = st.selectbox("Comparison", known, key=GROUP, format_func=lambda g: names.get(g, g))
            members = [s for s in store.list() if s.spec is not None and group in (s.spec.group, s.id)]
            active = any(s.state.is_active for s in members)
            session().active_transfers = active
            st.fragment(comparison, run_every=REFRESH if active else None)(store, group)
    run_actions.confirm_cancelling(store)
