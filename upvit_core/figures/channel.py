"""One channel under the glass: its place among the others, and what its removal does to each image."""

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.kl_sum import kl_terms
from upvit_core.figures.theme import (
    CLEAR,
    COLOURS,
    POWERS,
    TITLES,
    Chart,
    Spec,
    Theme,
    axis,
    drawn,
    legend,
    lines,
    log_ticks,
    markers,
    note,
)
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

NEIGHBOURS = 12


def rank_chart(
    scores: ImportanceScores,
    component: Component,
    block: int,
    channel: int,
    group: np.ndarray,
    kept: np.ndarray,
    theme: Theme,
    *,
    height: int = 260,
) -> Chart:
    """The channel among those it competes with (`group`, source channels), with standard errors and the cut.

    kept: mask over the group.
    """
    scores = scores.per_sample
    key = scores.shape.key_of(component, block)
    values = np.maximum(scores.values[key][group], 1e-12)
    errors = scores.stderr.get(key)
    order = np.argsort(-values, kind="stable")
    at = int(np.flatnonzero(group[order] == channel)[0])
    cut = int(kept.sum())
    own, high = float(values[order][at]), float(values.max())
    traces = _ranked(values[order], None if errors is None else errors[group][order], at, COLOURS[component])
    diamond = {"size": 13, "symbol": "diamond", "line": {"color": theme.surface, "width": 1.5}}
    here = f"channel {channel}: place {at + 1} of {len(group)}, {own:.3g} {scores.unit}<extra></extra>"
    traces.append(markers([at + 1], [own], {"color": theme.text, **diamond}, hovertemplate=here))
    if errors is not None:
        traces[-1]["error_y"] = _error([float(errors[channel])], theme.text, 2.5, 6)
    notes = []
    if 0 < cut < len(group):
        edge = [cut + 0.5, cut + 0.5]
        traces.append(lines(edge, [float(values.min()), high], theme.text, 2, dash="dash", hoverinfo="skip"))
        notes.append(note(" cut", cut + 0.5, np.log10(high), theme.text, xanchor="left", yanchor="top"))
    layout: Spec = {
        "xaxis": axis(theme, "place, most important first"),
        "yaxis": axis(theme, f"score, {scores.unit}", nticks=5, **POWERS),
        "annotations": notes,
    }
    figure = drawn(traces, layout, theme, height=height, margin=(64, 14, 10, 46))
    name = f"{TITLES[component]} channel {channel}" + ("" if component == "residual" else f" of block {block}")
    stays = "kept" if at < cut else "removed"
    alt = f"{name}: place {at + 1} of {len(group)} with {own:.3g} {scores.unit}, {stays} by the cut at {cut}."
    ranked, places = group[order], np.arange(1, len(group) + 1)

    def table() -> dict[str, np.ndarray]:
        stderr = errors[ranked] if errors is not None else np.full(len(ranked), np.nan)
        score = scores.values[key][ranked]
        return {"place": places, "channel": ranked, "score": score, "stderr": stderr, "kept": places <= cut}

    return Chart(figure, name, alt, table)


def _error(sizes: object, colour: str, thickness: float, width: float) -> Spec:
    return {"type": "data", "array": sizes, "color": colour, "thickness": thickness, "width": width}


def _ranked(values: np.ndarray, errors: np.ndarray | None, at: int, colour: str) -> list[Spec]:
    """Scores by place, with standard errors of the neighbours of place `at`."""
    places = np.arange(1, len(values) + 1)
    template = "place %{x}: %{y:.3g}<extra></extra>"
    traces = [lines(places.astype(np.float32), values.astype(np.float32), colour, 2, hovertemplate=template)]
    if errors is not None:
        near = np.arange(max(0, at - NEIGHBOURS), min(len(values), at + NEIGHBOURS + 1))
        bars, dots = _error(errors[near], colour, 1.2, 2), {"color": colour, "size": 5}
        traces.append(markers(places[near], values[near], dots, hoverinfo="skip", error_y=bars))
    return traces


def kl_by_image(
    kl: np.ndarray, changed: np.ndarray, component: Component, theme: Theme, *, sample: str = "image", height: int = 230
) -> Chart:
    """KL of every image (or `sample`) when one channel is removed, largest first; changed predictions are marked.

    kl: (N,) nats. changed: (N,) bool.
    """
    order = np.argsort(-kl, kind="stable")
    y = np.maximum(kl[order], 1e-12).astype(np.float32)
    x = np.arange(1, len(y) + 1, dtype=np.float32)
    flips = changed[order]
    template = f"{sample} in place %{{x:.0f}}: %{{y:.3g}} nats<extra></extra>"
    crosses = {"symbol": "x", "size": 9, "color": theme.text}
    traces = [
        lines(x, y, COLOURS[component], 2, fill="tozeroy", hovertemplate=template),
        markers(x[flips], y[flips], crosses, hovertemplate="prediction changes: %{y:.3g} nats<extra></extra>"),
    ]
    ticks, labels = log_ticks(float(np.log10(y[-1])), float(np.log10(y[0])))
    half = int(np.searchsorted(np.cumsum(y), y.sum() / 2)) + 1
    images = f"{half} {sample}{'s' if half != 1 else ''}"
    text = f"mean {kl.mean():.3g} nats · half of it from {images} · {int(changed.sum())} change (✕)"
    layout: Spec = {
        "xaxis": axis(theme, f"{len(kl):,} {sample}s, the most affected first"),
        "yaxis": axis(theme, "KL, nats", type="log", tickvals=[10.0**tick for tick in ticks], ticktext=labels),
        "annotations": [
            note(text, 1, 1, theme.text, 14, xref="paper", yref="paper", xanchor="right", yanchor="bottom")
        ],
    }
    figure = drawn(traces, layout, theme, height=height, margin=(64, 14, 28, 46))
    return Chart(
        figure,
        f"KL {sample} by {sample}",
        f"KL {sample} by {sample}: {text}.",
        lambda: {sample: np.arange(len(kl)), "kl_nats": kl, "prediction_changes": changed},
    )


def before_after(
    names: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
    component: Component,
    theme: Theme,
    *,
    height: int = 260,
    most: int = 10,
    called: tuple[str, str] = ("whole model", "without the channel"),
    what: str = "class",
) -> Chart:
    """Two distributions over the likeliest classes of one image: of the whole model (hollow), and without a channel.

    `called` names the two, `what` the things that have a probability.

    before, after: (classes,) probabilities.
    """
    chosen = np.sort(np.argsort(-np.maximum(before, after), kind="stable")[:most])
    labels = [names[i] for i in chosen]
    terms = kl_terms(before, after)
    hollow = {"color": CLEAR, "line": {"color": theme.text, "width": 2}}
    first = f"%{{x}}: %{{y:.2f}} % by the {called[0]}<extra></extra>"
    second = f"%{{x}}: %{{y:.2f}} % {called[1]}; its part of the KL %{{customdata:.3g}}<extra></extra>"
    solid = {"marker": {"color": COLOURS[component]}, "customdata": terms[chosen], "hovertemplate": second}
    bars: Spec = {"type": "bar", "x": labels}
    traces: list[Spec] = [
        {**bars, "y": 100 * before[chosen], "name": called[0], "marker": hollow, "hovertemplate": first},
        {**bars, "y": 100 * after[chosen], "name": called[1], **solid},
    ]
    layout: Spec = {
        **{"barmode": "group", "bargap": 0.25, "showlegend": True, "legend": legend(theme)},
        "xaxis": axis(theme, what, automargin=True),
        "yaxis": axis(theme, "probability, %", range=[0, 103]),
    }
    figure = drawn(traces, layout, theme, height=height, margin=(60, 14, 36, 60))
    total = float(terms.sum())
    largest = names[int(before.argmax())]
    alt = f"Probabilities of {len(labels)} classes before and after; KL {total:.3g} nats. Largest before: {largest}."
    return Chart(
        figure,
        "Before and after",
        alt,
        lambda: {"class": np.array(names), "before": before, "after": after, "kl_term_nats": terms},
    )
