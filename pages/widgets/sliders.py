"""The controls that set the what-if: presets, basis, repair, and a slider of each component, bound to the link."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import streamlit as st

from pages.services.open_model import OpenModel
from pages.services.slider_state import (
    BASIS,
    CHANNELS,
    DIRECTIONS,
    REPAIR,
    WIDTHS,
    current,
    keys_of,
    remember,
    set_to,
    start_of,
)
from pages.widgets import terms
from upvit_core.planning.live_counts import reachable
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf, head_options, preset_what_ifs


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


def controls(model: OpenModel) -> WhatIf:
    """Draw the model's sliders one under another, bound to the link; returns where they stand."""
    shape, now, start = model.shape, current(model), start_of(model)
    for key in keys_of(shape):
        value = getattr(now, key)
        if key not in st.session_state and value is not None and value != getattr(start, key):
            st.session_state[key] = value

    def snap(key: str) -> None:
        """Go on to the nearest share with a width of its own, and at least to the next one."""
        asked, before = int(st.session_state[key]), getattr(now, key)
        options = reachable(shape, now.heads, key)
        nearest = min(options, key=lambda percent: abs(percent - asked))
        if nearest == before != asked:
            ahead = [percent for percent in options if (percent - before) * (asked - before) > 0]
            nearest = min(ahead, key=lambda percent: abs(percent - before), default=nearest)
        if nearest != asked:  # setting it interrupts someone who still holds a key
            st.session_state[key] = nearest

    for key in keys_of(shape):
        with st.container(key=f"knob-{key}"):
            slider, default = SLIDERS[key], getattr(start, key)
            tip = terms.tip(slider.help, *slider.terms)
            if key != "heads":
                most = MAX_REMOVED_PERCENT
                st.slider(
                    slider.label, 0, most, default, step=1, format="%d%%", key=key, bind="query-params", help=tip,
                    on_change=snap, args=(key,),
                )  # fmt: skip
            elif len(options := head_options(shape)) > 1 and not model.is_elastic:
                st.select_slider(slider.label, options, default, key=key, bind="query-params", help=tip)
            else:
                cut = f"{shape.num_heads or 'as they are'}, which cannot be merged"
                st.caption(f"Heads: {'cut whole' if shape.structure.head_dim else cut}.")
    result = current(model)
    remember(result)
    if result.widths:
        st.query_params[WIDTHS] = result.widths
    elif WIDTHS in st.query_params:
        del st.query_params[WIDTHS]
    return result


def basis_control(model: OpenModel) -> None:
    """Draw the switch between the paper's cut and the rotated, repaired one, which needs weights and images."""
    start, now = start_of(model), current(model)
    if BASIS not in st.session_state and now.basis != start.basis:
        st.session_state[BASIS] = DIRECTIONS if now.basis == "directions" else CHANNELS

    def switched() -> None:
        st.session_state[REPAIR] = st.session_state[BASIS] == DIRECTIONS

    st.segmented_control(
        "How to cut",
        [CHANNELS, DIRECTIONS],
        default=DIRECTIONS if start.basis == "directions" else CHANNELS,
        required=True,
        wrap=True,
        key=BASIS,
        bind="query-params",
        disabled=not model.can_measure,
        on_change=switched,
        label_visibility="collapsed",
        help=terms.tip(
            "As in the paper (UP-ViT): channels are cut, and training has to make up for them. Rotate, cut, repair: "
            "the model is rotated first, which changes none of its answers, so that little hangs on what goes; then "
            "each layer is fitted to the original by least squares. The same widths and heads, no training.",
            "channel",
            "direction",
            "repair",
        ),
    )


def repair_control(model: OpenModel) -> None:
    """Draw the switch of repair alone."""
    st.session_state.setdefault(REPAIR, current(model).repair)
    text = (
        "After the cut, each layer's output is fitted to the original's by least squares on "
        f"{model.task.batch_items}. No training."
    )
    tip = terms.tip(text, "repair", "surgery")
    st.toggle("Repair", key=REPAIR, bind="query-params", disabled=not model.can_measure, help=tip)


def preset_picker(model: OpenModel) -> None:
    """Draw named settings as a row of buttons; the current one is marked.

    Buttons, since they hold no value: a selection that a browser still shows would be sent along with a slider's move,
    and look like a press.
    """
    shape, now = model.shape, current(model)

    def apply(chosen: WhatIf) -> None:
        now = current(model)
        spread = "uniform" if now.widths else now.allocation
        ratios = {key: getattr(chosen, key) for key in keys_of(shape)}
        set_to(replace(now, **ratios, allocation=spread, widths=""))

    text = "It has the widths of that model, so stock timm loads the result under its name."
    with st.container(horizontal=True, gap="xsmall", key="presets", width="content"):
        for name, value in preset_what_ifs(shape, start_of(model)).items():
            marked = value.slider_values == now.slider_values and not now.widths
            kind: Literal["primary", "secondary"] = "primary" if marked else "secondary"
            help_text = text if not name.endswith("%") else None
            st.button(name, key=f"preset-{name}", type=kind, on_click=apply, args=(value,), help=help_text)
