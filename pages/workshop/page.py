"""Workshop: eight exercises on the demo, checked by measuring; a list for the room, and the host's view."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from html import escape

import pandas as pd
import streamlit as st

from pages.services import folders, limits, open_model
from pages.services.session import session
from pages.widgets import frame, progress
from pages.widgets.plain import plain
from pages.widgets.tables import gallery, table
from pages.workshop import host
from pages.workshop.exercises import EXERCISES, REFERENCE, Answer, Bar, Demo, Exercise, Verdict, what_if_of
from pages.workshop.room import LONGEST_NAME, Participant, Person, Room, RoomError
from upvit_core import units
from upvit_core.errors import CheckpointError
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, head_options
from upvit_core.profiling.macs import count_parameters

COOKIE = "upvit_workshop"
EXERCISE = "exercise-chosen"  # key of a widget


def token() -> str:
    """A random name of this browser, kept in a cookie for a month."""
    mine = session().part(Participant)
    if not mine.token:
        kept = st.context.cookies.get(COOKIE, "")
        mine.token = kept if len(kept) == 32 and kept.isalnum() else secrets.token_hex(16)
    name = mine.token
    if st.context.cookies.get(COOKIE) != name:
        st.html(
            f"<script>document.cookie = '{COOKIE}={name}; path=/; max-age=2592000; samesite=strict';</script>",
            unsafe_allow_javascript=True,
        )
    return name


def the_demo() -> Demo:
    model = open_model.inspect("demo")
    if model is None or model.bundled is None:
        raise CheckpointError("The demo's scores are missing from assets/demo; restore that folder.")
    return Demo(replace(model, dataset="demo"), model.bundled)


def choose_exercise(titles: list[str]) -> int:
    """Draw the choice of the exercise; returns its index. The link holds its number from 1."""
    linked = st.query_params.get("exercise", "1")
    if EXERCISE not in st.session_state:
        st.session_state[EXERCISE] = min(max(int(linked[:9]), 1), len(titles)) - 1 if linked.isdecimal() else 0
    chosen = st.segmented_control(
        "Exercise", range(len(titles)), required=True, wrap=True, format_func=titles.__getitem__, key=EXERCISE
    )
    number = chosen or 0
    st.query_params["exercise"] = str(number + 1)
    return number


def ask(exercise: Exercise, demo: Demo, person: Person) -> Answer:
    """Draw the fields of one exercise, filled with this browser's last answer; returns the answer."""
    before = person.answers.get(exercise.key, [])
    key = f"ws-{exercise.key}"
    if exercise.key == "beat":
        return _ask_plan(demo, before)
    if exercise.options and isinstance(exercise.options[0], str):
        index = exercise.options.index(before[0]) if before and before[0] in exercise.options else None
        picked = st.radio("Your answer", exercise.options, index, key=key)
        return [] if picked is None else [picked]
    if exercise.options:
        start = before[0] if before and before[0] in exercise.options else exercise.options[0]
        label = "{} %" if exercise.key == "limit" else "{}"
        return [st.select_slider("Your answer", exercise.options, start, format_func=label.format, key=key)]
    width = len(demo.scores.values["residual" if exercise.key == "missed" else "ffn.0"])
    start = int(before[0]) if before and 0 <= int(before[0]) < width else 0
    return [int(st.number_input(f"Channel (0 to {width - 1})", 0, width - 1, start, key=key))]


def _ask_plan(demo: Demo, before: Answer) -> Answer:
    shape = demo.model.shape
    start = what_if_of(before) if len(before) == 4 else REFERENCE
    answer: Answer = []
    cells = st.columns(2) + st.columns(2)
    for cell, name, value in zip(
        cells, ("Residual", "Attention", "Heads", "FFN"), start.slider_values[:4], strict=True
    ):
        key = f"ws-beat-{name.lower()}"
        with cell:
            if name == "Heads":
                answer.append(int(st.select_slider(name, head_options(shape), value=value, key=key)))
            else:
                answer.append(int(st.slider(f"{name} removed", 0, MAX_REMOVED_PERCENT, value, format="%d%%", key=key)))
    mine, limit = demo.macs(what_if_of(answer)), demo.macs(REFERENCE)
    size = units.short(count_parameters(demo.plan(what_if_of(answer)).shape_after))
    fits = "fits" if mine <= limit else "too many"
    st.markdown(f"{mine / 1e6:.2f} M of {limit / 1e6:.2f} M MACs: **{fits}** · {size} parameters")
    return answer


def check(exercise: Exercise, demo: Demo, answer: Answer) -> Verdict | None:
    """Measure what the answer needs and judge it; None while measuring."""
    needed = exercise.measure(demo, answer)
    waiting = [job for job in needed if job.state != "done"]
    if waiting:
        progress.show(waiting[0], cancellable=False)
        st.caption(f"{len(needed) - len(waiting)} of {len(needed)} measurements are done.")
        return None
    return exercise.judge(demo, answer, [job.result for job in needed])


def draw_bars(bars: Sequence[Bar]) -> None:
    """One bar a measurement, in the component's colour, on one scale from 0; under it images that it changes."""
    most = max(bar.height for bar in bars) or 1.0
    for bar in bars:
        width = 100 * bar.height / most
        st.html(
            f'<div class="bars"><span>{escape(bar.name)}</span><div><div class="bar {bar.component}" '
            f'style="width: {width:.1f}%"></div></div><b>{bar.height:.3g}</b></div>'
        )
        if bar.tiles:
            gallery(bar.tiles)


def draw_verdict(exercise: Exercise, verdict: Verdict, *, revealed: bool = False) -> None:
    if verdict.right:
        st.success(f"Right. {plain(verdict.why)}", icon=":material/check_circle:")
    else:
        st.warning(f"Not yet. {plain(verdict.why)}", icon=":material/replay:")
    shown = verdict.right or revealed
    rows = verdict.rows if shown else verdict.rows[: verdict.own]
    table((), rows, caption="Measured on this machine, on test images", row_heads=True)
    if shown and verdict.bars:
        draw_bars(verdict.bars)
    if verdict.right:
        st.html(f'<div class="lesson"><p>{escape(exercise.lesson)}</p></div>')
    elif exercise.hint:
        st.caption(f"Hint: {exercise.hint}")


def one(exercise: Exercise, number: int, demo: Demo, room: Room, person: Person) -> None:
    st.header(f"{number} · {exercise.title}", anchor=False)
    st.html(f'<div class="lesson"><p>{escape(exercise.question)}</p></div>')
    answer = ask(exercise, demo, person)
    asked = session().part(Participant).asked
    icon = ":material/fact_check:"
    if st.button("Check by measuring", type="primary", icon=icon, disabled=not answer, key="ws-check"):
        asked[exercise.key] = answer
        room.answered(token(), exercise.key, answer)
    with st.container(key="ws-verdict"):
        if asked.get(exercise.key) != answer or not answer:
            return
        verdict = check(exercise, demo, answer)
        if verdict is None:
            return
        reveal = limits.is_host() and st.toggle("Reveal to the room", key=f"reveal-{exercise.key}")
        draw_verdict(exercise, verdict, revealed=reveal)
        if verdict.right and (exercise.key not in person.solved or better(person, verdict)):
            room.solved(token(), exercise.key, verdict.best)
            st.rerun()


def better(person: Person, verdict: Verdict) -> bool:
    return verdict.best is not None and (person.best is None or verdict.best.top1 > person.best.top1)


def the_room(room: Room, person: Person) -> None:
    st.header("The room", anchor=False)
    with st.form("nickname", border=False):
        tip = "Shown to the room. Without one you are not listed."
        name = st.text_input("Nickname", value=person.name, max_chars=LONGEST_NAME, help=tip)
        if st.form_submit_button("Join the list" if not person.name else "Change"):
            try:
                room.rename(token(), name)
                st.rerun()
            except RoomError as error:
                st.error(plain(error))

    def board() -> None:
        rows = [
            {
                "Nickname": p.name,
                f"Solved of {len(EXERCISES)}": len(p.solved),
                "Best top-1, %": p.best.top1 if p.best else None,
                "Plan": p.best.words if p.best else "",
            }
            for p in room.leaderboard()
        ]
        if not rows:
            st.caption("Everyone with a nickname will be listed here, with the exercises they have solved.")
            return
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch", placeholder="—")

    st.fragment(board, run_every=5.0)()


with frame.page(
    "Workshop",
    "Eight exercises on the demo. Predict, and let the studio measure whether you are right.",
    "Every answer is checked by cutting the demo and running it on test images, not looked up.",
):
    frame.current()
    demo, room = the_demo(), Room(folders.workshop())
    person = room.person(token())
    host.panel(room)
    left, right = st.columns([0.64, 0.36], gap="large")
    with left:
        titles = [f"{'✓ ' if e.key in person.solved else ''}{i} {e.short}" for i, e in enumerate(EXERCISES, 1)]
        number = choose_exercise(titles)
        one(EXERCISES[number], number + 1, demo, room, person)
        st.caption(f"{len(person.solved)} of {len(EXERCISES)} solved in this browser.")
    with right:
        the_room(room, person)
