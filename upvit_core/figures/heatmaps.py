"""Scores as pictures: log10 colour, what the plan removes veiled, a firm line at the cut; small under one another, or
one component large, every cell of it clickable.
"""

import numpy as np

from upvit_core.figures.score_grid import (
    Order,
    Picture,
    axis_words,
    component_table,
    find,
    heading,
    member_word,
    picture,
    score_table,
)
from upvit_core.figures.theme import (
    CLEAR,
    COLOURS,
    POWERS,
    Chart,
    Spec,
    Theme,
    axis,
    colour_bar,
    drawn,
    lines,
    log_ticks,
    markers,
    row_title,
)
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component


def colour_range(values: np.ndarray) -> tuple[float, float]:
    """log10 limits of the colours: the 0.5th and 98th percentile, so that a few outliers do not hide the rest."""
    low, high = np.nanpercentile(values, [0.5, 98])
    return float(low), float(max(high, low + 0.5))


def _alt(p: Picture, unit: str) -> str:
    low, high = 10.0 ** np.nanmin(p.values), 10.0 ** np.nanmax(p.values)
    rows = f"{len(p.blocks)} {p.row_word}s" if len(p.blocks) > 1 else "one row"
    sorted_as = "most important first" if p.order == "importance" else "in the model's order"
    scores = f"scores from {low:.2g} to {high:.2g} {unit}"
    return f"{heading(p)}. Heatmap of {rows} by {p.width} {p.word}s, {sorted_as}; {scores}."


def _hover(p: Picture) -> tuple[np.ndarray, str]:
    """Per cell: channel and score, (R, C, 2) float32; and the template that reads them."""
    data = np.stack([p.channel, 10.0**p.values], axis=-1).astype(np.float32)
    where = f"{p.row_word} %{{y}} · " if len(p.blocks) > 1 else f"{p.row_word} {p.blocks[0]} · "
    where = "" if p.component == "residual" and not p.staged else where
    cell = f"{p.word} %{{customdata[0]:.0f}}"
    cell = cell if p.step == 1 else f"{p.step} {p.word}s, the first %{{customdata[0]:.0f}}"
    place = "%{x:.0f} score higher · " if p.order == "importance" else ""
    return data, f"{where}{place}{cell}<br>score %{{customdata[1]:.3g}}<extra></extra>"


def traces_of(p: Picture, theme: Theme, *, number: int, limits: tuple[float, float], colourbar: Spec) -> list[Spec]:
    """Cells, veil over what is removed, head boundaries, firm line at the cut, on axes x<number> and y<number>."""
    axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
    data, template = _hover(p)
    rows = len(p.blocks)
    shared = {"type": "heatmap", "x0": (p.step - 1) / 2, "dx": p.step, "y0": 0, "dy": 1, **axes}
    ticks, labels = log_ticks(*limits)
    traces: list[Spec] = [
        {
            **shared,
            **{"z": p.values, "zmin": limits[0], "zmax": limits[1], "colorscale": "Cividis"},
            **{"customdata": data, "hovertemplate": template},
            "colorbar": {**colourbar, "tickvals": ticks, "ticktext": labels},
        }
    ]
    if p.removed.any():
        veil = np.round(100 * p.removed).astype(np.uint8)
        if np.isnan(p.values).any():
            veil = np.where(np.isnan(p.values), np.nan, veil).astype(np.float32)
        scale = [[0, theme.veil_at(0)], [1, theme.veil_at(0.64)]]
        traces.append(
            {**shared, "z": veil, "zmin": 0, "zmax": 100, "colorscale": scale, "showscale": False, "hoverinfo": "skip"}
        )
    size = p.width // p.groups
    edges = np.stack([np.arange(rows) - 0.5, np.arange(rows) + 0.5], 1).ravel()
    for group in range(1, p.groups):
        x = np.full(2 * rows, group * size - 0.5)
        traces.append(lines(x, edges, theme.surface, 4, hoverinfo="skip", **axes))
    if p.cuts is not None and p.removed.any():
        for group in range(p.groups):
            x = np.repeat(group * size + p.cuts[:, group] - 0.5, 2)
            traces.append(lines(x, edges, COLOURS[p.component], 4, hoverinfo="skip", **axes))
    return traces


def axes_of(p: Picture, theme: Theme, title: str) -> tuple[Spec, Spec]:
    """x and y axis of a picture."""
    rows = len(p.blocks)
    x = axis(theme, title, range=[-0.5, p.width - 0.5], showgrid=False, ticks="outside", ticklen=4, nticks=10)
    named = list(range(rows)) if rows < 5 else [0, rows // 2, rows - 1]
    ticks: Spec = {"tickvals": named} if rows > 1 else {"showticklabels": False}
    y = axis(theme, p.row_word if rows > 1 else "", range=[rows - 0.5, -0.5], showgrid=False, ticks="", **ticks)
    return x, y


def _order_words(order: Order) -> str:
    return "most important first" if order == "importance" else "in the model's order"


def draw_kept_strips(
    scores: ImportanceScores, plan: PruningPlan | None, theme: Theme, order: Order = "importance"
) -> Chart:
    """The components under one another, as the sliders leave them."""
    scores = scores.per_sample
    components = scores.shape.components
    # Directions come ordered already, within the residual and within every head.
    turned = [member_word(scores, component) == "direction" for component in components]
    orders: list[Order] = ["position" if own else order for own in turned]
    pictures = [picture(scores, c, plan, o, columns=800) for c, o in zip(components, orders, strict=True)]
    heights = [46.0 if len(p.blocks) == 1 else 90.0 if p.component == "residual" else 116.0 for p in pictures]
    gap, top, bottom = 78.0, 30.0, 42.0
    inner = sum(heights) + (len(heights) - 1) * gap
    words = ["strongest first" if own else _order_words(o) for own, o in zip(turned, orders, strict=True)]
    names = [axis_words(scores, p.component) for p in pictures]
    traces: list[Spec] = []
    layout: Spec = {"annotations": []}
    start = inner
    for number, (p, height, name) in enumerate(zip(pictures, heights, names, strict=True), start=1):
        middle, tall = (start - height / 2) / inner, max(height, 84) / inner
        bar = colour_bar(theme, x=1.012, y=middle, yanchor="middle", len=tall, thickness=10)
        traces += traces_of(p, theme, number=number, limits=colour_range(p.values), colourbar=bar)
        x, y = axes_of(p, theme, f"{name}, {words[number - 1]}")
        layout[f"xaxis{number}"] = {**x, "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = {**y, "anchor": f"x{number}", "domain": [(start - height) / inner, start / inner]}
        layout["annotations"].append(row_title(heading(p), start / inner, p.component, theme))
        start -= height + gap
    figure = drawn(traces, layout, theme, height=int(inner + top + bottom), margin=(56, 64, int(top), int(bottom)))
    alt = " ".join(_alt(p, scores.unit) for p in pictures)
    return Chart(figure, "What stays and what goes", alt, lambda: score_table(scores, plan))


def heatmap(
    scores: ImportanceScores,
    component: Component,
    plan: PruningPlan | None,
    theme: Theme,
    order: Order = "importance",
    *,
    block: int | None = None,
    height: int = 250,
) -> tuple[Chart, Picture]:
    """One component, large, every cell of it clickable; and the picture, which maps a click to its channel.

    block: draw this one alone. One row comes with a curve of its scores above it.
    """
    scores = scores.per_sample
    p = picture(scores, component, plan, order, blocks=None if block is None else [block])
    limits = colour_range(picture(scores, component, columns=10**6).values)
    single = len(p.blocks) == 1
    top, bottom, strip = 10.0, 46.0, 44.0
    inner = height - top - bottom
    share = strip / inner if single else 1.0
    bar = colour_bar(theme, f"score, {scores.unit}", x=1.008, y=0.5, yanchor="middle", len=1.0, thickness=11)
    traces = traces_of(p, theme, number=1, limits=limits, colourbar=bar)
    words = _order_words(order)
    x, y = axes_of(p, theme, f"{axis_words(scores, component)}, {words}")
    # No limit to the distance: in tall cells the edge is further from the middle than plotly looks by default.
    near: Spec = {"hovermode": "closest", "hoverdistance": -1}
    x["fixedrange"] = y["fixedrange"] = True  # a click that moves a little is a click; no handle lies over the cells
    layout: Spec = {"xaxis": {**x, "anchor": "y"}, "yaxis": {**y, "domain": [0, share]}, **near}
    for trace in traces:
        trace.update(xaxis="x", yaxis="y")
    if single:
        domain = [share + 0.04, 1]
        layout["yaxis2"] = axis(theme, f"score, {scores.unit}", domain=domain, nticks=4, fixedrange=True, **POWERS)
        layout["xaxis2"] = axis(
            theme, matches="x", anchor="y2", showticklabels=False, range=x["range"], showgrid=False, fixedrange=True
        )
        traces += _profile(scores, p, theme)
    traces[0]["hoverinfo"] = "skip"
    traces.append(_targets(p, traces[0].pop("customdata"), traces[0].pop("hovertemplate")))
    figure = drawn(traces, layout, theme, height=height, margin=(60, 92, int(top), int(bottom)))
    figure["layout"]["margin"]["autoexpand"] = False  # cells lie where `spot` says
    chart = Chart(figure, heading(p), _alt(p, scores.unit), lambda: component_table(scores, component, plan, p.blocks))
    return chart, p


def _targets(p: Picture, data: np.ndarray, template: str) -> Spec:
    """Transparent points over the cells: plotly reports no click on a heatmap."""
    R, C = p.values.shape
    columns = np.arange(C, dtype=np.float32) * p.step + (p.step - 1) / 2
    rows = np.repeat(np.arange(R, dtype=np.float32), C)
    unseen: Spec = {"marker": {"color": CLEAR}}
    return markers(
        np.tile(columns, R),
        rows,
        {"size": 7, "color": CLEAR},
        type="scattergl",
        xaxis="x",
        yaxis="y",
        customdata=data.reshape(-1, 2),
        hovertemplate=template,
        selected=unseen,
        unselected=unseen,
    )


def _profile(scores: ImportanceScores, p: Picture, theme: Theme) -> list[Spec]:
    """Scores of one row as a curve with its standard error, and the cut through it, on axes x2 and y2."""
    key = scores.shape.key_of(p.component, p.blocks[0])
    x = (np.arange(p.values.shape[1]) * p.step + (p.step - 1) / 2).astype(np.float32)
    y = (10.0 ** p.values[0]).astype(np.float32)
    axes = {"xaxis": "x2", "yaxis": "y2", "hoverinfo": "skip"}
    colour = COLOURS[p.component]
    traces: list[Spec] = []
    if key in scores.stderr and p.step == 1:
        error = scores.stderr[key][p.channel[0]]
        band = np.concatenate([y + error, np.maximum(y - error, p.floor)[::-1]]).astype(np.float32)
        around = np.concatenate([x, x[::-1]])
        traces.append(lines(around, band, colour, 0, fill="toself", fillcolor=colour, opacity=0.25, **axes))
    traces.append(lines(x, y, colour, 2, **axes))
    if p.cuts is not None and p.removed.any():
        size = p.width // p.groups
        for group in range(p.groups):
            at = group * size + p.cuts[0, group] - 0.5
            ends = [float(np.nanmin(y)), float(np.nanmax(y))]
            traces.append(lines([at, at], ends, theme.text, 2, dash="dash", **axes))
    return traces


def spot(p: Picture, layout: Spec, block: int, channel: int) -> tuple[float, float] | None:
    """The place of a channel in a `heatmap` of this layout: share of the plot's width, pixels below the figure's top.

    None where it is not drawn by itself.
    """
    place = find(p, block, channel)
    if place is None:
        return None
    (low, high), margin = layout["yaxis"]["domain"], layout["margin"]
    inner = layout["height"] - margin["t"] - margin["b"]
    down = (place[1] + 0.5) / len(p.blocks)
    return (place[0] + 0.5) / p.width, margin["t"] + inner * (1 - high + (high - low) * down)
