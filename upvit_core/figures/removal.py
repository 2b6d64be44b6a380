"""The effect of removing a channel on whole classes, and on its head's attention."""

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import COLOURS, Chart, Spec, Theme, axis, colour_bar, drawn, note
from upvit_core.records.shape import Component
from upvit_core.records.task import IMAGES, Task


def by_class(
    names: Sequence[str], labels: np.ndarray, kl: np.ndarray, changed: np.ndarray, component: Component, theme: Theme,
    *, task: Task = IMAGES,
) -> Chart:  # fmt: skip
    """Mean KL of the images of each class (of the places before each token), the most affected first, with how many
    predictions change.

    labels (N,) class of each image; kl (N,) nats; changed (N,) bool.
    """
    nats = task.nats
    present = np.unique(labels)
    mean = np.array([kl[labels == c].mean() for c in present])
    flips = np.array([int(changed[labels == c].sum()) for c in present])
    count = np.array([int((labels == c).sum()) for c in present])
    order = np.argsort(-mean, kind="stable")
    top = order[:8][::-1]
    bars: Spec = {"type": "bar", "orientation": "h", "x": mean[top], "y": [names[c] for c in present[top]]}
    words = [f"{f} of {n} change" if f else "" for f, n in zip(flips[top], count[top], strict=True)]
    trace = {
        **bars, "marker": {"color": COLOURS[component]}, "textposition": "auto", "text": words,
        "hovertemplate": f"%{{y}}: %{{x:.3g}} {nats}<extra></extra>",
    }  # fmt: skip
    layout: Spec = {
        "xaxis": axis(theme, f"KL, {nats}", rangemode="tozero", exponentformat="power"),
        "yaxis": axis(theme, task.output, automargin=True, showgrid=False),
    }
    figure = drawn([trace], layout, theme, height=260, margin=(110, 14, 10, 46))
    first = order[0]
    alt = (
        f"Most affected {task.outputs}: {names[present[first]]} with {mean[first]:.3g} {nats}, then "
        f"{', '.join(names[c] for c in present[order[1:3]])}; {int(flips.sum())} predictions change in all."
    )

    def table() -> dict[str, np.ndarray]:
        classes = np.array([names[c] for c in present[order]])
        counts = {task.samples: count[order], "kl_nats": mean[order], "predictions_change": flips[order]}
        return {"class": classes, **counts}

    return Chart(figure, f"Most affected {task.outputs}", alt, table)


def attention_pair(before: np.ndarray, after: np.ndarray, theme: Theme) -> Chart:
    """Attention of one head to the patches of one image, with (left) and without the channel: (rows, columns) each."""
    top = float(max(before.max(), after.max()))
    traces: list[Spec] = []
    layout: Spec = {"annotations": []}
    for number, (values, name) in enumerate(((before, "with the channel"), (after, "without it")), start=1):
        bar = colour_bar(theme, "share of attention", thickness=10)
        colours = {"zmin": 0, "zmax": top, "colorscale": "Cividis", "showscale": number == 2, "colorbar": bar}
        template = "patch row %{y}, column %{x}: %{z:.3f}<extra></extra>"
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}", "hovertemplate": template}
        traces.append({"type": "heatmap", "z": np.asarray(values, np.float32), **colours, **axes})
        left = 0.0 if number == 1 else 0.53
        layout[f"xaxis{number}"] = axis(
            theme, "patch column", domain=[left, left + 0.44], anchor=f"y{number}", dtick=2, showgrid=False
        )
        layout[f"yaxis{number}"] = axis(
            theme,
            "patch row" if number == 1 else "",
            showticklabels=number == 1,  # the rows are the same
            autorange="reversed",
            dtick=2,
            anchor=f"x{number}",
            scaleanchor=f"x{number}",
            showgrid=False,
        )
        corner: Spec = {"xref": "paper", "yref": "paper", "yanchor": "bottom", "xanchor": "left"}
        layout["annotations"].append(note(name, left, 1.0, theme.text, **corner))
    figure = drawn(traces, layout, theme, height=250, margin=(52, 70, 26, 46))
    moved = 0.5 * float(np.abs(before - after).sum())
    alt = f"Attention of the channel's head to the patches, with and without the channel: {moved:.1%} of it moves."
    rows, columns = np.indices(before.shape)
    return Chart(
        figure,
        "Where its head looks",
        alt,
        lambda: {"row": rows.ravel(), "column": columns.ravel(), "with": before.ravel(), "without": after.ravel()},
    )
