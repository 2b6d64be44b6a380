"""One KL divergence as the sum that it is: two distributions over the classes, and under each class its term."""

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import CLEAR, COLOURS, Chart, Spec, Theme, axis, drawn, legend, note
from upvit_core.records.shape import Component

SMALLEST = 1e-30
WORTH_SAYING = 0.2  # terms below this share of the largest get no number


def kl_terms(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """q ln(q / p) of every class, (classes,), in nats; their sum is KL(q ‖ p). A class with q = 0 has the term 0."""
    return before * (np.log(np.maximum(before, SMALLEST)) - np.log(np.maximum(after, SMALLEST)))


def kl_sum(
    names: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
    component: Component,
    theme: Theme,
    *,
    height: int = 360,
    most: int = 10,
    what: str = "class",
) -> Chart:
    """Above, probabilities of the whole model (hollow) and without the channel; below, each class's term of the KL.

    before, after: (classes,) probabilities. At most `most` classes are drawn, those with the largest probabilities and
    terms; the rest are one bar. `what` names one of them.
    """
    terms = kl_terms(before, after)
    weight = np.maximum(np.maximum(before, after), np.abs(terms))
    chosen = np.sort(np.argsort(-weight, kind="stable")[:most])
    labels, total = [names[i] for i in chosen], float(terms.sum())
    q, p, t = 100 * before[chosen], 100 * after[chosen], terms[chosen]
    if len(chosen) < len(names):
        labels.append(f"{len(names) - len(chosen):,} others")
        q, p = (np.append(some, 100 - some.sum()) for some in (q, p))
        t = np.append(t, total - t.sum())
    reach = max(float(np.abs(t).max()), 1e-12)
    colour = COLOURS[component]
    bars: Spec = {"type": "bar", "x": labels}
    hollow = {"color": CLEAR, "line": {"color": theme.text, "width": 2}}
    numbers = [f"{value:+.2g}" if abs(value) >= WORTH_SAYING * reach else "" for value in t]
    outside = {"textposition": "outside", "constraintext": "none", "cliponaxis": False}
    traces: list[Spec] = [
        {**bars, "y": q, "name": "q: whole model", "marker": hollow, **_tip("q = %{y:.2f} %")},
        {**bars, "y": p, "name": "p: without the channel", "marker": {"color": colour}, **_tip("p = %{y:.2f} %")},
        {
            **{**bars, "y": t, "yaxis": "y2", "showlegend": False, "offsetgroup": "terms"},
            **{"marker": {"color": theme.quiet}, "text": numbers, **outside},
            **{"textfont": {"size": 12, "color": theme.text}, **_tip("q ln(q/p) = %{y:.3g} nats")},
        },
    ]
    low, high = min(float(t.min()), 0.0), max(float(t.max()), 0.0)
    room = {"range": [low - 0.3 * reach, high + 0.35 * reach], "domain": [0, 0.39], "nticks": 4}
    zero = {"exponentformat": "power", "zeroline": True, "zerolinecolor": theme.quiet}
    words = f"q ln(q/p), {what} by {what} · sum <b>{total:.3g} nats</b>"
    between = {"xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "middle"}
    layout: Spec = {
        **{"barmode": "group", "bargap": 0.25, "showlegend": True, "legend": legend(theme)},
        "xaxis": axis(theme, what, automargin=True, anchor="y2"),
        "yaxis": axis(theme, "probability, %", range=[0, 103], domain=[0.57, 1]),
        "yaxis2": axis(theme, "term, nats", **room, **zero),
        "annotations": [note(words, 1, 0.48, theme.text, 14, **between)],
    }
    figure = drawn(traces, layout, theme, height=height, margin=(64, 14, 36, 60))
    top = int(np.argmax(np.abs(terms)))
    alt = (
        f"Probabilities of {len(labels)} answers with and without the channel, and the term of the KL, {what} by "
        f"{what}: they add up to {total:.3g} nats; the largest is {names[top]} with {terms[top]:+.2g}."
    )
    return Chart(
        figure, "The sum", alt, lambda: {"class": np.array(names), "q": before, "p": after, "term_nats": terms}
    )


def _tip(value: str) -> Spec:
    return {"hovertemplate": f"%{{x}}: {value}<extra></extra>"}
