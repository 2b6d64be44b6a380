"""The same test images before the cut, after it, and now: what a run has forgotten and learned again."""

from collections.abc import Iterator, Mapping

import streamlit as st

from pages.widgets.tables import Tile, breakable, image_tag
from upvit_core.runs.folder import Answers, Run

MOST, MOST_FLIPPED = 6, 12
ROWS = {"teacher": "original", "surgery": "after the cut", "start": "before training", "now": "now"}


def chosen(answers: Answers) -> list[int]:
    """Examples whose answer the cut changed, of different classes first; they stay the same while the run learns."""
    before, cut = answers.answers.get("teacher", answers.right), _first(answers.answers)
    changed = [i for i in range(len(answers.images)) if before[i] != cut[i]]
    seen: dict[str, int] = {}
    turn = []
    for i in [*changed, *(i for i in range(len(answers.images)) if before[i] == cut[i])]:
        seen[answers.right[i]] = seen.get(answers.right[i], 0) + 1
        turn.append((before[i] == cut[i], seen[answers.right[i]], i))
    return sorted(i for *_, i in sorted(turn)[:MOST])


def _first(answers: Mapping[str, list[str]]) -> list[str]:
    return answers.get("surgery") or answers.get("start") or []


def draw(run: Run) -> None:
    """The images with the answers of a run; a line where there are none."""
    answers = run.answers
    if not answers.images or not _first(answers.answers):
        st.html('<p class="quiet">Test images with the answers before and after will be here once it is measured.</p>')
        return
    indices = chosen(answers)
    cells = ["<span></span>"]
    cells += [image_tag(answers.images[i], answers.right[i]) for i in indices]
    for moment, name in ROWS.items():
        if given := answers.answers.get(moment):
            cells.append(f'<span class="row">{name}</span>')
            cells += [
                f'<span class="{"" if given[i] == answers.right[i] else "wrong"}">{breakable(given[i])}</span>'
                for i in indices
            ]
    st.html(f'<div class="same" style="--count: {len(indices)}">{"".join(cells)}</div>')
    st.html(f'<p class="quiet">{summary(answers)}.</p>')


def summary(answers: Answers) -> str:
    """The change of the images' answers: against the original's where there is one, else against the right ones."""
    cut, now = _first(answers.answers), answers.answers.get("now", [])
    before = answers.answers.get("teacher")
    if before is None:
        first, last = (sum(map(str.__eq__, given, answers.right)) for given in (cut, now))
        text = f"Of {len(cut)} test images {first} were right before training"
        return f"{text}; {last} are now" if now else text
    lost = [i for i in range(len(cut)) if cut[i] != before[i]]
    text = f"Of {len(cut)} test images the cut changed {len(lost)}"
    if lost and now:
        text += f"; {sum(now[i] == before[i] for i in lost)} of them have the original's answer again"
    return text


def flipped(answers: Answers) -> Iterator[Tile]:
    """Examples whose answer by the student now differs from the original's."""
    before, now = answers.answers.get("teacher", []), answers.answers.get("now") or _first(answers.answers)
    columns = zip(answers.images, answers.right, before, now, strict=False)
    for image, right, was, given in [row for row in columns if row[2] != row[3]][:MOST_FLIPPED]:
        told = f"{was}\u00a0→", f"{'✓' if given == right else '✗'} {given}"
        yield Tile(image, f"{right}: {was}, now {given}", told)
