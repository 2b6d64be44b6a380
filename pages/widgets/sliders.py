"""The controls that set the what-if: presets, basis, repair, and a slider of each component, bound to the link."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services.slider_state import BASIS, CHANNELS, DIRECTIONS, REPAIR, WIDTHS, current, keys_of, remember, set_to
from pages.widgets import terms
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf, default_what_if, head_options, preset_what_ifs
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import task_of

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator


@dataclass(frozen=True)
class Slider:
    """Label and help of one slider, and the glossary's terms for it."""

    label: str
    help: str
    terms: tuple[str, ...]


SLIDERS = {
    "residual": Slider(
        "Residual removed",
        "Share of the model's D channels that every block reads and writes (component 1). Removing one narrows "
        "everything: the embedding, every norm, every layer.",
        ("residual", "ratio"),
    ),
    "attention": Slider(
        "Attention removed",
        "Share of the channels inside each attention head (component 2). Heads are merged first, then the least "
        "important channels inside each merged head go.",
        ("attention", "head", "ratio"),
    ),
    "heads": Slider(
        "Heads",
        "Heads after merging: neighbouring heads are joined until this many are left. Joined heads share one softmax, "
        "so this changes the model too, and no score predicts by how much.",
        ("merging", "head"),
    ),
    "ffn": Slider(
        "FFN removed",
        "Share of the hidden channels of every block's feed-forward network (component 3).",
        ("ffn", "ratio"),
    ),
    "reduction": Slider(
        "Reduction removed",
        "Share of the channels of the map from which a block makes its keys and values, where that map is made smaller "
        "first (PVTv2). At the residual's share, stock timm builds the result.",
        ("ratio",),
    ),
}


def controls(shape: ModelShape, cells: Mapping[str, DeltaGenerator] | None = None) -> WhatIf:
    """Draw the model's sliders, bound to the link; returns where they stand.

    `cells` holds the container of each slider (default: one under another).
    """
    now, start = current(shape), default_what_if(shape)
    for key in keys_of(shape):
        value = getattr(now, key)
        if key not in st.session_state and value is not None and value != getattr(start, key):
            st.session_state[key] = value
    for key in keys_of(shape):
        with cells[key] if cells else nullcontext(), st.container(key=f"knob-{key}"):
            slider, default = SLIDERS[key], getattr(start, key)
            tip = terms.tip(slider.help, *slider.terms)
            if key != "heads":
                most = MAX_REMOVED_PERCENT
                st.slider(slider.label, 0, most, default, step=1, format="%d%%", key=key, bind="query-params", help=tip)
            elif len(options := head_options(shape)) > 1:
                st.select_slider(slider.label, options, default, key=key, bind="query-params", help=tip)
            else:
                st.caption(f"Heads: {shape.num_heads or 'as they are'}, which cannot be merged.")
    result = current(shape)
    remember(result)
    if result.widths:
        st.query_params[WIDTHS] = result.widths
    elif WIDTHS in st.query_params:
        del st.query_params[WIDTHS]
    return result


def basis_control(shape: ModelShape, possible: bool) -> None:
    """Draw the switch of the basis; directions need weights and images."""
    now = current(shape)
    st.session_state.setdefault(REPAIR, now.repair)
    if BASIS not in st.session_state and now.basis == "directions":
        st.session_state[BASIS] = DIRECTIONS

    def switched() -> None:
        """Directions start with repair and with all heads: narrower heads lose less than merged ones."""
        directions = st.session_state[BASIS] == DIRECTIONS
        st.session_state[REPAIR] = directions
        heads = shape.num_heads if directions else default_what_if(shape).heads
        if heads is not None:
            st.session_state["heads"] = heads

    st.segmented_control(
        "Basis",
        [CHANNELS, DIRECTIONS],
        default=CHANNELS,
        required=True,
        wrap=True,
        key=BASIS,
        bind="query-params",
        disabled=not possible,
        on_change=switched,
        help=terms.tip(
            "Channels: as in the letter (UP-ViT). Directions: a direction is a fixed mixture of "
            "channels. The model is rotated, which changes none of its answers, so that what matters lies in few "
            "directions; then the others go. The same widths and structure, and far less is lost.",
            "channel",
            "direction",
        ),
    )


def method_controls(shape: ModelShape, possible: bool) -> None:
    """Draw the choice of the basis and of repair; both need weights and images."""
    if shape.has_directions:
        basis_control(shape, possible)
    st.session_state.setdefault(REPAIR, current(shape).repair)
    only_vits = "" if shape.has_directions else " Directions, the other way to cut, are defined for plain ViTs only."
    text = (
        "After the cut, each layer's output is fitted to the original's by least squares on "
        f"{task_of(shape).batch_items}. No training.{only_vits}"
    )
    tip = terms.tip(text, "repair", "surgery")
    st.toggle("Repair", key=REPAIR, bind="query-params", disabled=not possible, help=tip)


def preset_picker(shape: ModelShape) -> None:
    """Draw named settings as a row of buttons; the current one is marked.

    Buttons, since they hold no value: a selection that a browser still shows would be sent along with a slider's move,
    and look like a press.
    """
    now = current(shape)

    def apply(chosen: WhatIf) -> None:
        now = current(shape)
        spread = "uniform" if now.widths else now.allocation
        ratios = {key: getattr(chosen, key) for key in keys_of(shape)}
        set_to(replace(now, **ratios, allocation=spread, widths=""))

    text = "A preset with a model's name has the widths of that model, so stock timm loads the result under its name."
    st.markdown('<span class="label">Preset</span>', unsafe_allow_html=True, help=text)
    with st.container(horizontal=True, gap="xsmall", key="presets"):
        for name, value in preset_what_ifs(shape).items():
            marked = value.slider_values == now.slider_values and not now.widths
            st.button(
                name, key=f"preset-{name}", type="primary" if marked else "secondary", on_click=apply, args=(value,)
            )
