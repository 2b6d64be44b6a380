"""The scores in use: choose a record, make another, and follow the records that are being made."""

from typing import Literal

import streamlit as st

from pages.services import jobs, open_model, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import progress, terms
from pages.widgets.plain import plain
from upvit_core.errors import UPViTError
from upvit_core.records.criteria import CriterionName
from upvit_core.records.scores import ImportanceScores

WHICH = "which-scores"
ASKING = "score", ""


def scores_panel(model: OpenModel) -> None:
    """Draw the choice of scores, the form that makes new ones, and the progress of those in the making."""
    available = scoring.records(model)
    left, right = st.columns([0.72, 0.28], vertical_alignment="bottom")
    with left:
        if available:
            _choice(model, available)
    with right:
        if model.has_weights:
            score_button("score")
    for key, name in list(session().scoring.items()):
        _follow(model, key, name)
    if session().asking == ASKING:
        st.dialog("Score every channel", on_dismiss=lambda: _ask(None))(_form)(model)


def score_button(key: str, *, primary: bool = False) -> None:
    """Draw a button that opens the form of new scores."""
    kind: Literal["primary", "secondary"] = "primary" if primary else "secondary"
    width: Literal["content", "stretch"] = "content" if primary else "stretch"
    st.button("Score…", key=key, type=kind, width=width, icon=":material/calculate:", on_click=_ask, args=(ASKING,))


def _ask(what: tuple[str, str] | None) -> None:
    session().asking = what


def _choice(model: OpenModel, available: dict[str, ImportanceScores]) -> None:
    names = list(available)
    chosen = session().scores.get(model.source)
    st.session_state[WHICH] = chosen if chosen in available else names[0]
    st.selectbox(
        "Scores",
        names,
        format_func=lambda name: scoring.label(name, available[name]),
        key=WHICH,
        on_change=lambda: scoring.choose(model, st.session_state[WHICH]),
        help=terms.tip(
            f"Score of a channel: the sum over {model.task.samples} of KL(q ‖ p) in nats, q the answer of the whole "
            "model and p its answer without that channel (Eq. 1 of the letter).",
            *("score", "kl", "nat", "proxy", "criterion"),
        ),
    )


def _follow(model: OpenModel, key: str, name: str) -> None:
    """Draw one scoring job; its record comes into use once it is there, and again once it is complete."""
    now, job = session(), jobs.find(key)
    if job is None:
        del now.scoring[key]
    elif (record := progress.show(job)) is not None:
        del now.scoring[key]
        scoring.choose(model, record)
        st.toast("The new scores are in use.")
        st.rerun()
    elif job.version and key not in now.previewed:
        now.previewed.add(key)
        scoring.choose(model, name)
        st.rerun()


def _form(model: OpenModel) -> None:
    task = model.task
    with st.form("score", border=False):
        criterion = st.selectbox("Criterion", list(scoring.LABELS), format_func=scoring.LABELS.__getitem__)
        dataset = st.text_input(task.inputs, value=model.dataset, placeholder=task.source).strip()
        one, two = st.columns(2)
        images = one.number_input(f"Number of {task.batch_items}", 8, 100_000, 500, step=100)
        seed = two.number_input("Seed", 0, 10_000, 0, help=f"Determines which {task.batch_items} are drawn.")
        stable = st.checkbox(
            f"fisher: as many {task.batch_items} as a stable choice needs",
            value=True,
            help="Their number is doubled until the better half of the channels is the same at half of them and at all "
            "of them, to within 3 %; at most 2,000. The page shows the agreement that was reached.",
        )
        if st.form_submit_button("Score", type="primary"):
            count = None if stable and criterion is CriterionName.FISHER else int(images)
            request = scoring.Request(criterion, count, int(seed))
            before = dict(session().datasets)
            try:
                chosen = open_model.choose_dataset(model, dataset)
                scoring.start_scoring(chosen, request, slider_state.current(model))
            except UPViTError as error:
                session().datasets = before
                st.error(plain(error))
            else:
                _ask(None)
                st.rerun()
