"""TODO."""

from __future__ import annotations

import streamlit as st

from pages.services import evaluation, jobs, slider_state
from pages.services.open_model import OpenModel
from pages.services.scoring import CHOSEN, LABELS, choose, label, records, start
from pages.widgets import progress, terms
from upvit_core.importance.criterion_names import CriterionName
from upvit_core.records.task import task_of


def panel(model: OpenModel) -> None:
    """Choose scores, make new ones, follow those that are being made."""
    available = records(model)
    left, right = st.columns([0.72, 0.28], vertical_alignment="bottom")
    with left:
        if available:
            names = list(available)
            chosen = st.session_state.setdefault(CHOSEN, {}).get(model.source)
            st.session_state["which-scores"] = chosen if chosen in available else names[0]
            st.selectbox(
                "Scores", names,
                format_func=lambda name: label(name, available[name]), key="which-scores",
                on_change=lambda: choose(model, st.session_state["which-scores"]),
                help=terms.tip(
                    f"Score of a channel: the sum over {task_of(model.shape).samples} of KL(q ‖ p) in nats, q what "
                    "the whole model says and p what it says without that channel (Eq. 1 of the letter).",
                    "score", "kl", "nat", "proxy", "criterion",
                ),
            )  # fmt: skip
    with right:
        if model.has_weights:
            with st.popover("Score…", icon=":material/calculate:", width="stretch"):
                _form(model)
    running: dict[str, str] = st.session_state.setdefault("scoring", {})
    for key, name in list(running.items()):
        job = jobs.find(key)
        if job is None or not job.active:
            del running[key]
            if job is not None and job.state == "done":
                choose(model, job.result)
                st.toast("The new scores are in use.")
                st.rerun()
            if job is not None and job.state == "failed":
                st.error(job.error)
            continue
        if job.version and job.key not in st.session_state.setdefault("previewed", set()):
            st.session_state["previewed"].add(job.key)
            choose(model, name)
            st.rerun()
        progress.progress(job)


def _form(model: OpenModel) -> None:
    task = task_of(model.shape)
    with st.form("score", border=False):
        criterion = st.selectbox("Criterion", list(LABELS), format_func=LABELS.__getitem__)
        spec = st.text_input(task.inputs, value=evaluation.image_spec(model), help=task.source)
        one, two = st.columns(2)
        images = one.number_input(f"Number of {task.batch_items}", 8, 100_000, 500, step=100)
        seed = two.number_input("Seed", 0, 10_000, 0, help=f"Which {task.batch_items} are drawn.")
        stable = st.checkbox(
            f"fisher: as many {task.batch_items} as a stable choice needs", value=True,
            help="They are doubled until the better half of the channels is the same at half of them and at all of "
            "them, to within 3 %; at most 2,000. The page tells the figure that was reached.",
        )  # fmt: skip
        if st.form_submit_button("Score", type="primary"):
            evaluation.choose_images(model, spec.strip())
            count = None if stable and criterion is CriterionName.FISHER else int(images)
            start(model, str(criterion.value), count, int(seed), spec.strip(), slider_state.current(model.shape))
            st.rerun()
