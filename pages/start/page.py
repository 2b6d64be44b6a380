"""Start: the promise as one slider on the demo, or the open model's size and answers; and a panel to open another."""

import streamlit as st

from pages.services import demo_tour, open_model, scoring
from pages.services.session import session
from pages.start import open_panel, own_model, tour
from pages.widgets import frame
from pages.widgets.compute_box import compute_box
from pages.widgets.plain import plain

IMPORTANCE, TRADEOFF, LESSON = (f"pages/{name}/page.py" for name in ("importance", "tradeoff", "method"))


def next_steps(model: open_model.OpenModel) -> None:
    """One primary button: where to go from here."""
    steps: tuple[tuple[str, str], ...]
    if not model.is_demo and scoring.current(model) is None and model.has_weights:
        steps = (("Find out which channels matter", IMPORTANCE),)
    elif model.is_demo:
        steps = (("See which channels matter", IMPORTANCE), ("Set it finer on Trade-off", TRADEOFF))
    else:
        steps = (("Choose how much to remove", TRADEOFF), ("See which channels matter", IMPORTANCE))
    for number, (label, page) in enumerate(steps):
        kind = "secondary" if number else "primary"
        if st.button(label, type=kind, width="stretch", key=f"next-{number}", icon=":material/arrow_forward:"):  # type: ignore[arg-type]
            if page == TRADEOFF and model.is_demo and (shown := demo_tour.known()) is not None:
                session().move_to = tour.what_if(model, shown)
            frame.go_to(page)


def beside(model: open_model.OpenModel | None) -> None:
    with st.container(border=True, key="open-another"):
        open_panel.panel()
        compute_box()
    if model is not None:
        with st.container(key="next", gap="small"):
            next_steps(model)
            frame.page_link(LESSON, "Teaching? Eight steps for the projector")


with frame.page(
    "A quarter of the weights. The same answers.",
    "Slide to make this Vision Transformer thinner, and see at once what it costs. Then open yours.",
) as head:
    left, right = st.columns([0.71, 0.29], gap="large")
    with right:
        slot = st.container()
    try:
        with left:
            model = frame.current()
            if not model.is_demo:
                head.title(plain(model.name), "Its size, and how well it does.")
            if model.is_demo and (known := demo_tour.known()) is not None:
                tour.draw(known, model)
            else:
                own_model.draw(model)
    finally:
        with slot:
            beside(None if (now := session().shown) is None else now[0])
