"""One channel under the glass: its place among the others, and what its removal does to each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import COLOURS, TITLES, Chart, Spec, Theme, axis, drawn, log_ticks
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
    key = scores.shape.key_of(component, block)
    values = np.maximum(scores.values[key][group], 1e-12)
    errors = scores.stderr.get(key)
    order = np.argsort(-values, kind="stable")
    at = int(np.flatnonzero(group[order] == channel)[0])
    rank = np.arange(1, len(group) + 1)
    cut = int(kept.sum())
    near = np.arange(max(0, at - NEIGHBOURS), min(len(group), at + NEIGHBOURS + 1))
    colour = COLOURS[component]
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": rank.astype(np.float32),
            "y": values[order].astype(np.float32),
            "line": {"color": colour, "width": 2},
            "hovertemplate": "place %{x}: %{y:.3g} nats<extra></extra>",
        }
    ]
    if errors is not None:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rank[near],
                "y": values[order][near],
                "hoverinfo": "skip",
                "marker": {"color": colour, "size": 5},
                "error_y": {
                    "type": "data",
                    "array": errors[group][order][near],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 2,
                },
            }
        )
    own = float(values[order][at])
    marker: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": [at + 1],
        "y": [own],
        "marker": {
            "color": theme.text,
            "size": 13,
            "symbol": "diamond",
            "line": {"color": theme.surface, "width": 1.5},
        },
        "hovertemplate": f"channel {channel}: place {at + 1} of {len(group)}, {own:.3g} nats<extra></extra>",
    }
    if errors is not None:
        marker["error_y"] = {
            "type": "data",
            "array": [float(errors[channel])],
            "color": theme.text,
            "thickness": 2.5,
            "width": 6,
        }
    traces.append(marker)
    low, high = float(values.min()), float(values.max())
    if 0 < cut < len(group):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [cut + 0.5, cut + 0.5],
                "y": [low, high],
                "hoverinfo": "skip",
                "line": {"color": theme.text, "width": 2, "dash": "dash"},
            }
        )
    layout: Spec = {
        "xaxis": axis(theme, "place, most important first"),
        "yaxis": axis(theme, "score, nats", type="log", exponentformat="power", nticks=5),
        "annotations": [],
    }
    if 0 < cut < len(group):
        layout["annotations"].append(
            {
                "x": cut + 0.5,
                "y": np.log10(high),
                "text": " cut",
                "xanchor": "left",
                "yanchor": "top",
                "showarrow": False,
                "font": {"size": 13, "color": theme.text},
            }
        )
    figure = drawn(traces, layout, theme, height=height, margin=(64, 14, 10, 46))
    name = f"{TITLES[component]} channel {channel}" + ("" if component == "residual" else f" of block {block}")
    stays = "kept" if at < cut else "removed"
    alt = f"{name}: place {at + 1} of {len(group)} with {own:.3g} nats, {stays} by the cut at {cut}."
    ranked = group[order]

    def table() -> dict[str, np.ndarray]:
        stderr = errors[ranked] if errors is not None else np.full(len(ranked), np.nan)
        return {
            "place": rank,
            "channel": ranked,
            "score": scores.values[key][ranked],
            "stderr": stderr,
            "kept": rank <= cut,
        }

    return Chart(figure, name, alt, table)


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
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": y,
            "line": {"color": COLOURS[component], "width": 2},
            "fill": "tozeroy",
            "hovertemplate": f"{sample} in place %{{x:.0f}}: %{{y:.3g}} nats<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": x[flips],
            "y": y[flips],
            "marker": {"symbol": "x", "size": 9, "color": theme.text},
            "hovertemplate": "prediction changes: %{y:.3g} nats<extra></extra>",
        },
    ]
    ticks, labels = log_ticks(float(np.log10(y[-1])), float(np.log10(y[0])))
    half = int(np.searchsorted(np.cumsum(y), y.sum() / 2)) + 1
    images = f"{half} {sample}{'s' if half != 1 else ''}"
    text = f"sum {kl.sum():.3g} nats · half of it from {images} · {int(changed.sum())} change (✕)"
    layout: Spec = {
        "xaxis": axis(theme, f"{len(kl):,} {sample}s, the most affected first"),
        "yaxis": axis(theme, "KL, nats", type="log", tickvals=[10.0**tick for tick in ticks], ticktext=labels),
        "annotations": [
            {
                "x": 1,
                "xref": "paper",
                "y": 1,
                "yref": "paper",
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "text": text,
                "font": {"size": 14, "color": theme.text},
            }
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
    terms = before * (np.log(np.maximum(before, 1e-30)) - np.log(np.maximum(after, 1e-30)))
    traces: list[Spec] = [
        {
            "type": "bar",
            "x": labels,
            "y": 100 * before[chosen],
            "name": called[0],
            "marker": {"color": "rgba(0,0,0,0)", "line": {"color": theme.text, "width": 2}},
            "hovertemplate": f"%{{x}}: %{{y:.2f}} % by the {called[0]}<extra></extra>",
        },
        {
            "type": "bar",
            "x": labels,
            "y": 100 * after[chosen],
            "name": called[1],
            "marker": {"color": COLOURS[component]},
            "customdata": terms[chosen],
            "hovertemplate": f"%{{x}}: %{{y:.2f}} % {called[1]}; its part of the KL %{{customdata:.3g}}<extra></extra>",
        },
    ]
    layout: Spec = {
        "barmode": "group",
        "bargap": 0.25,
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"color": theme.text, "size": 13},
        },
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
