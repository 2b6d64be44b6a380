"""Transfer: the original and a pruned model taken to other images, side by side, live."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from pages.services import folders, limits, run_data
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import charts, frame, run_actions
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.figures.evaluations import evaluated_rows, final_full_evaluation
from upvit_core.figures.training_curves import GLYPHS, plot_training_curves
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.runs.executors import executor_for
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import FINETUNE_PRESETS

REFRESH = "2s"
GROUP = "transfer-group"  # key of a widget
RECIPES = {"demo": "minutes on a CPU", "finetune": "careful: smaller steps towards the first layers"}
FORMATS = {
    "Top-1 before, %": "%.2f", "Top-1 now, %": "%.2f", "to the original": "%+.2f", "Images/s": "%.0f",
    "Test images": "%d", "Top-1 on all, %": "%.2f", "All": "%d",
}  # fmt: skip


def pruned_models(summaries: Sequence[RunSummary], model: OpenModel) -> dict[str, str]:
    """Folders of finished students of the open model, by the name of their run, newest first."""
    label = run_data.names(summaries)
    return {
        str(Path(folders.runs().resolve()) / s.id / "model"): label[s.id]
        for s in summaries
        if s.spec is not None and s.spec.kind == "distill" and s.state.state == "done"
        and s.spec.teacher in (model.model, str(Path(model.model).resolve()))
    }  # fmt: skip


def form(store: RunStore, summaries: Sequence[RunSummary], model: OpenModel) -> None:
    """What to take where, and Start."""
    students = pruned_models(summaries, model)
    with st.container(border=True):
        st.markdown(f"**Take {model.name} and a pruned one to other images**")
        folder = st.selectbox(
            "Pruned model", [*students, ""], key="transfer-student", accept_new_options=True,
            format_func=lambda path: students.get(path, path or "none: the original alone"),
            help="A finished run of this model, or a folder typed here.",
        )  # fmt: skip
        if not students:
            st.caption("No run of this model is done yet; distil one on Trade-off, or type a folder.")
        images = st.text_input(
            "Images", key="transfer-images", placeholder="/data/cifar10.tar.gz",
            help="A folder of class folders (train/ and val/ in it, or split for you), an archive of one, or a timm "
            "data set name.",
        ).strip()  # fmt: skip
        st.caption(
            f"They are resized to {model.shape.img_size[0]} pixels and made "
            f"{'grey' if model.shape.in_chans == 1 else 'colour'}, as {model.name} reads images."
        )
        one, two = st.columns([0.4, 0.6])
        epochs = one.number_input("Epochs", 1, 1000, 2, key="transfer-epochs")
        what = two.selectbox(
            "Train", ["everything", "head only"], key="transfer-what",
            help="Head only leaves the backbone as it is: it tells what the features are worth as they are.",
        )  # fmt: skip
        recipe = st.selectbox(
            "Recipe", list(RECIPES), format_func=RECIPES.__getitem__, key="transfer-recipe",
            index=0 if model.shape.is_small else 1,
        )  # fmt: skip
        scratch = st.checkbox(
            "Also the pruned shape from scratch", key="transfer-scratch", disabled=not folder,
            help="Fresh weights, the same steps: what the pruned weights are worth.",
        )  # fmt: skip
        if st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="transfer-start", width="stretch",
            disabled=not images or not model.has_weights,
        ):  # fmt: skip
            try:
                start(store, model, str(folder or ""), images, int(epochs), str(recipe), what == "head only", scratch)
            except UPViTError as error:
                st.error(str(error))


def start(
    store: RunStore,
    model: OpenModel,
    folder: str,
    images: str,
    epochs: int,
    recipe: str,
    head_only: bool,
    scratch: bool,
) -> None:
    """One run for each, with the same settings, in one group. Raises UPViTError where the host does not allow it."""
    for place in filter(None, (images, folder)):
        limits.confine(place.partition("#")[0])
    limits.check_room(store, session().owner, 1 + bool(folder) + bool(folder and scratch))
    where = Path(images).name.split(".")[0]
    settings = FINETUNE_PRESETS[recipe].model_copy(update={"head_only": head_only})
    wanted = [(model.name, model.model, settings)]
    if folder:
        pruned = run_data.model_name(folder)
        if scratch:
            fresh = settings.model_copy(update={"from_scratch": True, "head_only": False})
            wanted.append((f"{pruned} from scratch", folder, fresh))
        wanted.insert(1, (f"{pruned}", folder, settings))
    group = f"{model.name} to {where} {len(groups(store.list())) + 1}"
    for name, source, chosen in wanted:
        order = RunSpec(
            kind="finetune", name=f"{name} to {where}"[:200], student=source, data=images, epochs=epochs,
            settings=chosen, group=group[:200], owner=session().owner,
        )  # fmt: skip
        executor_for(store, order).submit(store.create(order))
    st.session_state[GROUP] = group
    st.rerun()


def groups(summaries: Sequence[RunSummary]) -> list[str]:
    """Comparisons there are, newest first; a run of its own, as the command line starts, is one."""
    return list(
        dict.fromkeys(s.spec.group or s.id for s in summaries if s.spec is not None and s.spec.kind == "finetune")
    )


def comparison(store: RunStore, group: str) -> None:
    """Curves, table and state of one group, brought up to date while it goes on."""
    every = store.list()
    chosen = [s for s in reversed(every) if s.spec is not None and group in (s.spec.group, s.id)]
    if session().active_transfers != any(s.state.is_active for s in chosen):
        st.rerun()
    run_actions.said()
    curves = run_data.curves(store, chosen, every)
    charts.show(plot_training_curves(curves, "top1", charts.theme(), height=380), "transfer-curves")
    for place, (curve, summary) in enumerate(zip(curves, chosen, strict=True)):
        with st.container(horizontal=True, vertical_alignment="center", key=f"transfer-{summary.id}"):
            now = run_data.state_words(summary.state)
            glyph = GLYPHS[place % len(GLYPHS)]
            st.html(f'<span style="color:{curve.colour}">{glyph}</span> <b>{escape(curve.label)}</b> · {escape(now)}')
            run_actions.button_of(store, summary)
        if summary.state.state == "failed" and summary.state.error:
            st.caption(summary.state.error)
    table(store, chosen, [curve.label for curve in curves])


def table(store: RunStore, chosen: Sequence[RunSummary], labels: Sequence[str]) -> None:
    """Size, speed and top-1 of each; differences to the first, the original."""
    lines: list[dict[str, Any]] = []
    first: float | None = None
    for summary, label in zip(chosen, labels, strict=True):
        assert summary.spec is not None
        rows = run_data.rows()(store, summary.id)
        told, whole = evaluated_rows(rows), final_full_evaluation(rows)
        shape = run_data.shape_of(store, summary.id, summary.spec)
        now = told[-1]["top1"] if told else None
        first = now if not lines else first
        lines.append(
            {
                "Run": label,
                "Parameters": units.short(count_parameters(shape)) if shape else "",
                "MACs": units.short(count_macs(shape)) if shape else "",
                "Top-1 before, %": told[0]["top1"] if told else None,
                "Top-1 now, %": now,
                "to the original": None if now is None or first is None or not lines else now - first,
                "Images/s": told[0].get("images_per_s") if told else None,
                "Test images": told[-1]["images"] if told else None,
                "Top-1 on all, %": whole["top1"] if whole else None,
                "All": whole["images"] if whole else None,
                "Epochs": round(summary.state.epoch, 2),
                "Seconds": round(summary.state.seconds),
            }
        )
    if not any(line["All"] for line in lines):
        on_fewer = ("Top-1 on all, %", "All")
        lines = [{name: value for name, value in line.items() if name not in on_fewer} for line in lines]
    numbers = {name: st.column_config.NumberColumn(format=form) for name, form in FORMATS.items()}
    st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=numbers, width="stretch", placeholder="—")
    st.caption("Measured on the images' own test part. Parameters and MACs with the head that each model came with.")


with frame.page(
    "Transfer",
    "What a model has learnt, taken to other images: does the pruned one keep it?",
    "Fine-tuning: the backbone's weights, a new head for the new classes, no teacher. The same settings for each, so "
    "that the curves can be compared.",
):
    store = RunStore(folders.runs())
    model = frame.current()
    left, right = st.columns([0.31, 0.69], gap="medium")
    with left:
        if not model.task.has_classes:
            st.info(
                f"{model.name} reads text: there are no classes to give it a new head for. Distil it on the other text "
                "instead; open a model of images for this page.",
                icon=":material/translate:",
            )
        elif model.has_weights:
            form(store, store.list(), model)
        else:
            st.info("Open a model with weights first: this one has only its shape.", icon=":material/memory:")
            frame.page_link("pages/model/page.py", "Open one on Model")
    with right:
        found = groups(store.list())
        if not found and model.task.has_classes:
            frame.awaited(
                "Two curves will be here: top-1 of the original and of the pruned model while both learn the new "
                "classes.",
                icon=":material/moving:",
            )
        elif found:
            if st.session_state.get(GROUP) not in found:
                st.session_state[GROUP] = found[0]
            names = {s.id: s.name for s in store.list()}
            group = st.selectbox("Comparison", found, key=GROUP, format_func=lambda g: names.get(g, g))
            active = any(
                s.state.is_active for s in store.list() if s.spec is not None and group in (s.spec.group, s.id)
            )
            session().active_transfers = active
            st.fragment(comparison, run_every=REFRESH if active else None)(store, group)
    run_actions.confirm_cancelling(store)
