"""Learning from the teacher, as it happens: top-1 of the student against steps, the teacher as the goal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import Chart, Spec, Theme, axis, drawn


def learning(
    steps: Sequence[float], top1: Sequence[float], teacher: float | None, theme: Theme, *, height: int = 430
) -> Chart:
    """The first point is right after surgery; top1 and teacher in percent, all measured."""
    accent = "#0072B2" if theme.name == "light" else "#3a9bd9"
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(steps),
            "y": list(top1),
            "line": {"color": accent, "width": 3},
            "marker": {"size": 12, "color": accent},
            "hovertemplate": "step %{x}: top-1 %{y:.1f} %<extra></extra>",
        }
    ]
    layout: Spec = {
        "xaxis": axis(theme, "training steps", rangemode="tozero"),
        "yaxis": axis(theme, "top-1 on test images, %", range=[0, 100]),
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
                "y": teacher,
                "text": f"★ teacher {teacher:.1f} %",
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 14, "color": theme.text},
            }
        )
    if len(top1):
        layout["annotations"].append(
            {
                "x": steps[-1],
                "y": top1[-1],
                "text": f"<b>{top1[-1]:.1f} %</b>",
                "showarrow": False,
                "yshift": -22,
                "font": {"size": 15, "color": theme.text},
            }
        )
    figure = drawn(traces, layout, theme, height=height, margin=(70, 30, 16, 52))
    last = f" Now {top1[-1]:.1f} % after {steps[-1]:.0f} steps." if len(top1) else ""
    goal = f" The teacher has {teacher:.1f} %." if teacher is not None else ""
    alt = f"Top-1 of the student against training steps, {len(top1)} measurements.{last}{goal}"
    return Chart(
        figure,
        "Learning from the teacher",
        alt,
        lambda: {"step": np.array(steps, float), "top1_percent": np.array(top1, float)},
    )
