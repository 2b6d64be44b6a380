"""Learning from the teacher: the student's top-1 or perplexity against steps, the teacher's as the goal."""

import math
from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import Chart, Spec, Theme, accent, axis, drawn, lines, note
from upvit_core.records.task import IMAGES, Task


def plot_learning_curve(
    steps: Sequence[float], values: Sequence[float], teacher: float | None, theme: Theme, *, task: Task = IMAGES,
    height: int = 430,
) -> Chart:  # fmt: skip
    """The first point is right after surgery; values and teacher in what `task` counts, all measured."""
    name = task.name.lower()
    colour = accent(theme)
    points: Spec = {"marker": {"size": 12, "color": colour}, "mode": "lines+markers"}
    template = f"step %{{x}}: {name} %{{y:.{task.digits}f}}{task.sign}<extra></extra>"
    curve = lines(list(steps), list(values), colour, 3, hovertemplate=template, **points)

    def height_of(value: float) -> float:
        return value if task.in_percent else math.log10(value)

    shapes: list[Spec] = []
    notes: list[Spec] = []
    if teacher is not None:
        goal_line = {"color": theme.text, "width": 2, "dash": "dash"}
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": teacher, "y1": teacher}
        shapes.append({**across, "line": goal_line})
        words, corner = f"★ teacher {task.format(teacher)}", {"xref": "paper", "xanchor": "left", "yanchor": "top"}
        notes.append(note(words, 0.01, height_of(teacher), theme.text, 14, **corner))
    if len(values):
        words = f"<b>{task.format(values[-1])}</b>"
        notes.append(note(words, steps[-1], height_of(values[-1]), theme.text, 15, yshift=-22))
    scale: Spec = {"range": [0, 100]} if task.in_percent else {"type": "log"}
    layout: Spec = {
        "xaxis": axis(theme, "training steps", rangemode="tozero"),
        "yaxis": axis(theme, f"{task.axis}, of test {task.samples}", **scale),
        "annotations": notes,
        "shapes": shapes,
    }
    figure = drawn([curve], layout, theme, height=height, margin=(70, 30, 16, 52))
    last = f" Now {task.format(values[-1])} after {steps[-1]:.0f} steps." if len(values) else ""
    goal = f" The teacher has {task.format(teacher)}." if teacher is not None else ""
    alt = f"{task.name} of the student against training steps, {len(values)} measurements.{last}{goal}"
    column = f"{task.key}_percent" if task.in_percent else task.key
    table = {"step": np.array(steps, float), column: np.array(values, float)}
    return Chart(figure, "Learning from the teacher", alt, lambda: table)
