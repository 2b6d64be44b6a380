"""Learning from the teacher: the student's top-1 or perplexity against steps, the teacher's as the goal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import Chart, Spec, Theme, axis, drawn
from upvit_core.records.task import IMAGES, Task


def learning(
    steps: Sequence[float], values: Sequence[float], teacher: float | None, theme: Theme, *, task: Task = IMAGES,
    height: int = 430,
) -> Chart:  # fmt: skip
    """The first point is right after surgery; values and teacher in what `task` counts, all measured."""
    name = task.name.lower()
    accent = "#0072B2" if theme.name == "light" else "#3a9bd9"
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(steps),
            "y": list(values),
            "line": {"color": accent, "width": 3},
            "marker": {"size": 12, "color": accent},
            "hovertemplate": f"step %{{x}}: {name} %{{y:.{task.digits}f}}{task.sign}<extra></extra>",
        }
    ]
    scale: Spec = {"range": [0, 100]} if task.in_percent else {"type": "log"}
    layout: Spec = {
        "xaxis": axis(theme, "training steps", rangemode="tozero"),
        "yaxis": axis(theme, f"{task.axis}, of test {task.samples}", **scale),
        "annotations": [],
        "shapes": [],
    }
    if teacher is not None:
        layout["shapes"].append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": teacher,
                "y1": teacher,
                "line": {"color": theme.text, "width": 2, "dash": "dash"},
            }
        )
        layout["annotations"].append(
            {
                "xref": "paper",
                "x": 0.01,
                "y": teacher if task.in_percent else math.log10(teacher),
                "text": f"★ teacher {task.format(teacher)}",
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 14, "color": theme.text},
            }
        )
    if len(values):
        layout["annotations"].append(
            {
                "x": steps[-1],
                "y": values[-1] if task.in_percent else math.log10(values[-1]),
                "text": f"<b>{task.format(values[-1])}</b>",
                "showarrow": False,
                "yshift": -22,
                "font": {"size": 15, "color": theme.text},
            }
        )
    figure = drawn(traces, layout, theme, height=height, margin=(70, 30, 16, 52))
    last = f" Now {task.format(values[-1])} after {steps[-1]:.0f} steps." if len(values) else ""
    goal = f" The teacher has {task.format(teacher)}." if teacher is not None else ""
    alt = f"{task.name} of the student against training steps, {len(values)} measurements.{last}{goal}"
    return Chart(
        figure,
        "Learning from the teacher",
        alt,
        lambda: {
            "step": np.array(steps, float),
            (f"{task.key}_percent" if task.in_percent else task.key): np.array(values, float),
        },
    )
