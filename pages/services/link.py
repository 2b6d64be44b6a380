"""The part of a link that names what lies on a machine: which scores and which images; and what this machine lacks.

Sliders, basis, repair, spread, depth and batch are in the link through their widgets and `whatif`; `open` names the
model. A link opened elsewhere gives the same picture, or a sentence for each part that is not there.
"""

import os.path

import streamlit as st

from pages.services import block_removals, limits, open_model, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.session import session
from upvit_core.errors import LimitError
from upvit_core.paths import place_of
from upvit_core.planning.what_if import ALLOCATIONS
from upvit_core.records.basis import Basis

SCORES, IMAGES = "scores", "images"


def follow(model: OpenModel) -> None:
    """Take scores and images from the link, once a session and model, and keep the link true to what is chosen."""
    now = session()
    if now.link_source not in (None, model.source):  # the link's scores and images belong to another model
        _set(SCORES, None)
        _set(IMAGES, None)
    now.link_source = model.source
    chosen, available = now.scores, scoring.records(model)
    asked = st.query_params.get(SCORES)
    if asked in available and model.source not in chosen:
        scoring.choose(model, asked)
    if chosen.get(model.source) in available:
        first = next(iter(available))
        _set(SCORES, None if chosen[model.source] == first else chosen[model.source])
    asked = st.query_params.get(IMAGES)
    if asked and model.source not in now.datasets and not _lacking(asked):
        open_model.choose_dataset(model, asked)
    if model.source in now.datasets:
        dataset = now.datasets[model.source]
        _set(IMAGES, dataset if dataset != open_model.own_dataset(model) else None)


def missing(model: OpenModel) -> list[str]:
    """One sentence for each thing that the link shows and this machine does not have."""
    sentences = []
    asked = st.query_params.get(SCORES)
    if asked and asked not in scoring.records(model):
        sentences.append(
            f"The link was made with the scores {asked[:80]}, which this machine does not have; score with the same "
            "settings."
        )
    asked = st.query_params.get(IMAGES)
    if asked and (why := _lacking(asked)):
        sentences.append(why)
    now = slider_state.current(model)
    scores = scoring.current(model)
    if (
        now.depth is not None
        and block_removals.records().of_model(scores.model_digest if scores else model.digest) is None
    ):
        sentences.append(
            f"The link keeps {now.depth} blocks, but which of them go has not been scored here; all are shown. Score "
            "half-blocks under Fewer blocks on Trade-off."
        )
    if not model.has_weights and (now.repair or now.basis == "directions"):
        sentences.append(
            "The link cuts directions or repairs, which needs the model's weights; here are only its scores."
        )
    return sentences


def compare(model: OpenModel) -> None:
    """Add a note on the settings of the first link that the drawn page did not take, with the values it has."""
    now, asked = slider_state.current(model), session().asked
    shown = {
        **{key: getattr(now, key) for key in slider_state.keys_of(model.shape)},
        slider_state.ROUND_TO: now.round_to,
        slider_state.WIDTHS: now.widths,
        "presenter": "on" if session().presenting else "off",
        **{key: st.session_state[key] for key in asked if key in st.session_state},
    }
    if "exercise" in asked:  # the widget of Workshop counts from 0
        shown["exercise"] = st.query_params.get("exercise")
    refused = [key for key in asked if key in shown and not _taken(asked[key], shown[key])]
    if refused:
        wrong = ", ".join(f"{key} = {asked[key][:40]}" for key in refused)
        right = ", ".join(f"{key} = {shown[key] or 'nothing'}" for key in refused)
        session().notes.append(f"The link asks for {wrong}, which cannot be used here; the page has {right}.")
    session().asked = {}


def _taken(asked: str, value: object) -> bool:
    """True if a setting has the value that a link asked for, under any of its names."""
    if value in (slider_state.CHANNELS, slider_state.DIRECTIONS):
        turned = asked in slider_state.DIRECTIONS_WORDS
        return (turned or asked in (slider_state.CHANNELS, *Basis)) and turned == (value == slider_state.DIRECTIONS)
    same = asked.casefold() == str(value).casefold() or (asked, value) in ALLOCATIONS.items()
    return same or not asked or (not isinstance(value, bool) and slider_state.whole(asked) == value)


def _lacking(spec: str) -> str:
    """The reason why images cannot be read here; empty where they can, or are a name that a library will look up."""
    try:
        limits.confine(spec)
    except LimitError as error:
        return str(error)
    if spec.startswith(("/", "~", ".")) and not os.path.exists(place_of(spec)):
        return f"The link was made with the images {spec[:80]}, which this machine does not have; give others on Start."
    return ""


def _set(key: str, value: str | None) -> None:
    if value:
        if st.query_params.get(key) != value:
            st.query_params[key] = value
    elif key in st.query_params:
        del st.query_params[key]
