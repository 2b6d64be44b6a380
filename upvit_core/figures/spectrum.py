"""Energy of the stream that the best k channels carry, and the best k directions; pure functions."""

import numpy as np

from upvit_core.figures.theme import COLOURS, Chart, Spec, Theme, axis, drawn, lines, markers, note


def held(shares: np.ndarray, kept: int) -> float:
    """Share of the energy in the first `kept` entries, in percent."""
    return 100 * float(shares[:kept].sum())


def spectrum_curves(
    channels: np.ndarray, directions: np.ndarray | None, kept: int, theme: Theme, *, height: int = 430
) -> Chart:
    """Cumulated shares of energy (each (D,), falling) against how many stay; the cut keeps `kept` of D.

    Without `directions` only the channels' curve is drawn, on the same axes.
    """
    D = len(channels)
    x = np.arange(D + 1)
    series = [("channels", channels, theme.quiet, "dot")]
    if directions is not None:
        series.append(("directions", directions, COLOURS["residual"], "solid"))
    traces: list[Spec] = []
    notes: list[Spec] = []
    descriptions = []
    for name, shares, colour, dash in series:
        y = 100 * np.concatenate([[0.0], np.cumsum(shares)])
        template = f"the best %{{x}} {name} carry %{{y:.1f}} %<extra></extra>"
        at = float(y[kept])
        traces.append(lines(x, y.astype(np.float32), colour, 3, dash=dash, hovertemplate=template))
        traces.append(markers([kept], [at], {"color": colour, "size": 13}, hoverinfo="skip"))
        below = name == "channels"
        place = {"xanchor": "left", "yanchor": "top", "xshift": 10, "yshift": -4 if below else -8}
        words, ink = f"<b>{kept} {name}: {at:.1f} %</b>", theme.text if below else colour
        notes.append(note(words, kept, at, ink, 14, bgcolor=theme.surface, **place))
        descriptions.append(f"the best {kept} of {D} {name} carry {y[kept]:.1f} %")
    edge = {"color": theme.text, "width": 2, "dash": "dash"}
    layout: Spec = {
        "xaxis": axis(theme, f"how many of {D} stay", range=[0, D]),
        "yaxis": axis(theme, "energy of the stream carried, %", range=[0, 104]),
        "annotations": notes,
        "shapes": [{"type": "line", "x0": kept, "x1": kept, "y0": 0, "y1": 1, "yref": "paper", "line": edge}],
    }
    figure = drawn(traces, layout, theme, height=height, margin=(70, 30, 16, 52))
    return Chart(
        figure,
        "What a cut keeps of the residual stream",
        f"Share of the residual stream's energy: {'; '.join(descriptions)}.",
        lambda: {"kept": x[1:], **{f"{name}_share": shares for name, shares, _, _ in series}},
    )
