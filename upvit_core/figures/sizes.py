"""One model, every size: accuracy against parameters of the slices of an elastic model."""

import numpy as np

from upvit_core.figures.theme import Chart, Spec, Theme, accent, axis, drawn, lines, note
from upvit_core.records.task import IMAGES, Task


def sizes_curve(params: list[int], values: list[float], theme: Theme, *, task: Task = IMAGES, height: int) -> Chart:
    """Values of the sizes, the whole model first, in what `task` counts; a star marks the whole."""
    millions, colour = [count / 1e6 for count in params], accent(theme)
    template = f"%{{x:.3g}} M parameters: {task.name.lower()} %{{y:.{task.digits}f}}{task.sign}<extra></extra>"
    marker: Spec = {"size": [16, *[12] * (len(values) - 1)], "symbol": ["star", *["circle"] * (len(values) - 1)]}
    style: Spec = {"mode": "lines+markers", "marker": {**marker, "color": colour}, "hovertemplate": template}
    places = {0: "whole", len(values) - 1: "a quarter as wide"}
    notes = []
    for at, words in places.items():
        text, place = f"{words}: <b>{task.format(values[at])}</b>", {"xanchor": "left" if at else "right"}
        notes.append(note(text, millions[at], values[at], theme.text, 14, yshift=-50 if at else -26, **place))
    layout: Spec = {
        "xaxis": axis(theme, "million parameters", rangemode="tozero"),
        "yaxis": axis(theme, f"{task.axis}, of test {task.samples}", range=[0, 100]),
        "annotations": notes,
    }
    figure = drawn([lines(millions, values, colour, 3, **style)], layout, theme, height=height, margin=(70, 30, 16, 52))
    alt = f"{task.name} of {len(values)} sizes of one model, {values[0]:.1f} to {values[-1]:.1f}, without training."
    table = {"parameters": np.array(params), f"{task.key}_percent": np.array(values)}
    return Chart(figure, "One model, every size", alt, lambda: table)
