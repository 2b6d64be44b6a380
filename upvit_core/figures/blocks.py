"""Depth as a picture: the model as its sequence of half-blocks, every candidate's score, what stays at a chosen depth.

At a depth below the model's own, the scores are those by which the last pair was removed; at full depth, those of the
first removal. A removed half-block is veiled and crossed out and says when it went; a hybrid block has a dashed frame.
"""

import numpy as np

from upvit_core.figures.diagram_primitives import in_channels
from upvit_core.figures.theme import (
    CLEAR,
    COLOURS,
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
from upvit_core.planning.depth import is_hybrid, pairs_at
from upvit_core.records.block_removals import BlockRemovals, Candidate, half_name
from upvit_core.records.shape import Component, ModelShape
from upvit_core.records.task import task_of

LEAST = 1e-12
BOX, FRAME, LABEL_AT = (0.62, 1.0), (0.52, 1.10), 0.3
SYMBOLS = {False: "circle", True: "diamond"}
KINDS = {False: "plain", True: "hybrid"}


def draw_half_blocks(removals: BlockRemovals, depth: int, theme: Theme) -> Chart:
    """The scores above, the half-blocks with what is left of them below."""
    shape, whole = removals.shape, depth == removals.shape.depth
    pairs = pairs_at(removals, depth)
    step = removals.steps[0] if whole else removals.step_to(depth)
    traces = [*_scores(step.candidates, step.removed, removals, theme), _hover(shape, removals, depth)]
    shapes, annotations = _boxes(shape, removals, depth, theme)
    for pair in pairs:
        _frame(pair, shapes, annotations, theme, short=shape.depth > 14)
    logs = np.log10([_mean(c.kl, removals.samples) for c in step.candidates])
    span = max(float(logs.max() - logs.min()), 0.3)
    low, high = float(logs.min()) - 0.32 * span, float(logs.max()) + 0.12 * span
    chosen = _chosen(step.candidates, step.removed)
    words = f"<b>{chosen.name}</b> {'costs least: goes first' if whole else 'cost least: removed'}"
    middle, lowest = sum(chosen.halves) / 2, float(logs.min())
    annotations.append(note(words, middle, lowest, theme.text, xref="x", yref="y", yshift=-20))
    scale = _scale(low, high)
    layout: Spec = {
        "shapes": shapes,
        "annotations": annotations,
        "xaxis": {"visible": False, "range": [-0.75, 2 * shape.depth - 0.25], "fixedrange": True, "anchor": "y2"},
        "yaxis": axis(theme, f"KL without the pair, {task_of(shape).nats}", domain=[0.43, 1], **scale),
        "yaxis2": {"visible": False, "range": [0, 1.2], "domain": [0, 0.4], "fixedrange": True},
        "showlegend": True,
        "legend": legend(theme, x=1, xanchor="right", itemclick=False, itemdoubleclick=False),
    }
    figure = drawn(traces, layout, theme, height=380, margin=(64, 12, 34, 6))
    return Chart(
        figure,
        f"{shape.depth} blocks as half-blocks" if whole else f"{depth} of {shape.depth} blocks",
        _alt(removals, depth, chosen),
        lambda: _table(removals),
    )


def depth_curve(removals: BlockRemovals, depth: int, theme: Theme) -> Chart:
    """KL to the original at every depth that the removals reach, measured on the proxy images, not distilled."""
    first, nats = removals.shape.depth, task_of(removals.shape).nats
    depths = np.array([first - 1 - n for n in range(len(removals.steps))])
    kl = np.array([_mean(step.kl, removals.samples) for step in removals.steps])
    errors = np.array([_stderr(_chosen(step.candidates, step.removed), removals.samples) for step in removals.steps])
    logs = np.log10(kl)
    low, high = float(logs.min()) - 0.25, float(logs.max()) + 0.25
    here = depths == depth
    dots = {"size": np.where(here, 13, 8), "color": theme.text, "line": {"color": theme.surface, "width": 1.5}}
    template = f"%{{x}} blocks: %{{customdata[0]:.3g}} ± %{{customdata[1]:.2g}} {nats}<extra></extra>"
    more: Spec = {"mode": "lines+markers", "marker": dots, "error_y": _errors(kl, errors, theme)}
    both = np.stack([kl, errors], axis=1)
    trace = lines(depths, logs.astype(np.float32), theme.quiet, 1.6, customdata=both, hovertemplate=template, **more)
    layout: Spec = {
        "xaxis": axis(theme, "blocks left", range=[first - 0.5, depths[-1] - 0.5], tickvals=depths, fixedrange=True),
        "yaxis": axis(theme, f"KL, {nats}", **_scale(low, high)),
    }
    figure = drawn([trace], layout, theme, height=250, margin=(64, 12, 12, 46))
    words = ", ".join(f"{d} blocks {k:.3g}" for d, k in zip(depths, kl, strict=True))
    alt = f"KL to the original in {nats}, on {_on(removals)}: {words}."
    table = {"depth": depths, "kl_mean_nats": kl, "standard_error": errors}
    return Chart(figure, "What each removal costs", alt, lambda: table)


def _on(removals: BlockRemovals) -> str:
    return f"{removals.images:,} {task_of(removals.shape).batch_items}"


def _mean(kl: float, samples: int) -> float:
    return max(kl / samples, LEAST)


def _stderr(candidate: Candidate, samples: int) -> float:
    return 0.0 if candidate.stderr is None else candidate.stderr / samples


def _chosen(candidates: tuple[Candidate, ...], removed: tuple[int, int]) -> Candidate:
    return next(c for c in candidates if c.halves == removed)


def _scale(low: float, high: float) -> Spec:
    """An axis of exponents, labelled at powers of ten; at 2 and 5 too where there are fewer than three powers."""
    exponents, labels = log_ticks(low, high)
    if len(exponents) < 3:
        values = [m * 10.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
        inside = [v for v in values if low <= np.log10(v) <= high]
        exponents, labels = [float(np.log10(v)) for v in inside], [f"{v:g}" for v in inside]
    return {"range": [low, high], "tickvals": exponents, "ticktext": labels, "fixedrange": True}


def _errors(kl: np.ndarray, errors: np.ndarray, theme: Theme) -> Spec:
    """Standard errors around log10 of the KL."""
    up, down = np.log10(1 + errors / kl), -np.log10(np.maximum(1 - errors / kl, 0.01))
    sizes = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return {**sizes, "color": theme.quiet, "thickness": 1.4, "width": 3}


def _scores(
    candidates: tuple[Candidate, ...], removed: tuple[int, int], removals: BlockRemovals, theme: Theme
) -> list[Spec]:
    """One bar a candidate, as wide as its pair reaches, with its mark and standard error."""
    traces = []
    for hybrid in (False, True):
        kind = [c for c in candidates if c.is_hybrid == hybrid]
        kl = np.array([_mean(c.kl, removals.samples) for c in kind])
        errors = np.array([_stderr(c, removals.samples) for c in kind])
        bars: Spec = {"x": [], "y": []}
        for candidate, height in zip(kind, np.log10(kl), strict=True):
            bars["x"] += [candidate.halves[0] + 0.08, candidate.halves[1] - 0.08, None]
            bars["y"] += [height, height, None]
        name = "attention and FFN of one block" if not hybrid else "FFN and the next attention: leaves a hybrid block"
        traces.append(lines(bars["x"], bars["y"], theme.quiet, 2.5, hoverinfo="skip", showlegend=False))
        edge = {"color": theme.surface, "width": 1.5}
        size = [15 if c.halves == removed else 10 for c in kind]
        marker = {"symbol": SYMBOLS[hybrid], "color": theme.text, "size": size, "line": edge}
        cost = f"%{{customdata[0]:.3g}} ± %{{customdata[1]:.2g}} {task_of(removals.shape).nats}"
        tip = f"without %{{text}} ({KINDS[hybrid]}): {cost}<br>{_on(removals)}, measured<extra></extra>"
        traces.append(
            markers(
                [sum(c.halves) / 2 for c in kind],
                np.log10(kl).astype(np.float32),
                marker,
                name=name,
                error_y=_errors(kl, errors, theme),
                text=[c.name for c in kind],
                customdata=np.stack([kl, errors], axis=1) if kind else [],
                hovertemplate=tip,
            )
        )
    return traces


def _component(half: int) -> Component:
    return "ffn" if half % 2 else "attention"


def _gone(removals: BlockRemovals, depth: int) -> dict[int, int]:
    """Removed half-blocks, and which removal took them, from 1."""
    steps = removals.steps[: removals.shape.depth - depth]
    return {half: number for number, step in enumerate(steps, 1) for half in step.removed}


def _boxes(shape: ModelShape, removals: BlockRemovals, depth: int, theme: Theme) -> tuple[list[Spec], list[Spec]]:
    gone = _gone(removals, depth)
    shapes: list[Spec] = [_line(-0.7, 2 * shape.depth - 0.3, sum(BOX) / 2, sum(BOX) / 2, theme.quiet, 1.6)]
    annotations: list[Spec] = []
    size = 13 if shape.depth <= 14 else 9
    for half in range(2 * shape.depth):
        x0, x1, colour = half - 0.36, half + 0.36, COLOURS[_component(half)]
        shapes.append(_rect(x0, x1, *BOX, colour, colour))
        if half not in gone:
            annotations.append(_text(half, sum(BOX) / 2, f"<b>{half_name(half)}</b>", "#ffffff", size=size))
            continue
        shapes.append(_rect(x0, x1, *BOX, colour, theme.veil_at(0.82)))
        shapes.append(_line(x0, x1, *BOX, theme.text, 2.5))
        annotations.append(_text(half - 0.15, BOX[1] - 0.1, half_name(half), theme.text, size=size - 1))
        when = _ordinal(gone[half]) if shape.depth <= 14 else str(gone[half])
        annotations.append(_text(half, LABEL_AT, f"{'removed<br>' * (shape.depth <= 7)}{when}", theme.quiet, size=10))
    return shapes, annotations


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _frame(pair: tuple[int, int], shapes: list[Spec], annotations: list[Spec], theme: Theme, *, short: bool) -> None:
    x0, x1 = 2 * pair[0] - 0.45, 2 * pair[1] + 1.45
    hybrid = is_hybrid(pair)
    shapes.append(_rect(x0, x1, *FRAME, theme.text if hybrid else theme.quiet, CLEAR, 2.5 if hybrid else 1.2))
    if hybrid:
        shapes[-1]["line"]["dash"] = "dash"
        name = f"<b>hybrid</b> {half_name(2 * pair[0])}{'+' if short else ' + '}{half_name(2 * pair[1] + 1)}"
        annotations.append(_text((x0 + x1) / 2, 0.06, name, theme.text))
        shapes.append(_line(x0, x1, 0.15, 0.15, theme.text, 1.5))


def _rect(x0: float, x1: float, y0: float, y1: float, line: str, fill: str, width: float = 1.2) -> Spec:
    return {**_line(x0, x1, y0, y1, line, width), "type": "rect", "fillcolor": fill}


def _line(x0: float, x1: float, y0: float, y1: float, colour: str, width: float) -> Spec:
    places = {"xref": "x", "yref": "y2", "x0": x0, "x1": x1, "y0": y0, "y1": y1}
    return {"type": "line", **places, "line": {"color": colour, "width": width}}


def _text(x: float, y: float, text: str, colour: str, size: int = 13) -> Spec:
    return note(text, x, y, colour, size, xref="x", yref="y2", yanchor="middle")


def _hover(shape: ModelShape, removals: BlockRemovals, depth: int) -> Spec:
    gone, texts = _gone(removals, depth), []
    for half in range(2 * shape.depth):
        block = in_channels(shape, half // 2)
        own = (
            f"FFN of block {half // 2}: {block.ffn:,} hidden channels"
            if half % 2
            else f"attention of block {half // 2}: {block.num_heads} heads × {block.head_dim}"
        )
        texts.append(f"{own}{f', removed {_ordinal(gone[half])}' if half in gone else ''}")
    x, marker = list(range(len(texts))), {"size": 30, "color": CLEAR}
    tip = "%{text}<extra></extra>"
    return markers(x, [sum(BOX) / 2] * len(x), marker, yaxis="y2", text=texts, hovertemplate=tip, showlegend=False)


def _alt(removals: BlockRemovals, depth: int, chosen: Candidate) -> str:
    whole = removals.shape.depth
    cost = f"{_mean(chosen.kl, removals.samples):.3g} {task_of(removals.shape).nats} on {_on(removals)}"
    text = f"The {2 * whole} half-blocks of {removals.shape.name} and the KL without each pair of neighbours."
    if depth == whole:
        return f"{text} {chosen.name} costs least, {cost}."
    hybrids = [f"{half_name(2 * a)} with {half_name(2 * f + 1)}" for a, f in pairs_at(removals, depth) if a != f]
    gone = ", then ".join(c.name for c in (_chosen(s.candidates, s.removed) for s in removals.steps[: whole - depth]))
    kept = f"{depth} blocks are left, {'none of them hybrid' if not hybrids else 'hybrid: ' + ', '.join(hybrids)}"
    return f"{text} Removed: {gone}. {kept}; KL {cost}."


def _table(removals: BlockRemovals) -> dict[str, np.ndarray]:
    steps = enumerate(removals.steps, start=1)
    rows = [(removals.shape.depth - n, c, c.halves == step.removed) for n, step in steps for c in step.candidates]
    return {
        "depth_after": np.array([depth for depth, _, _ in rows]),
        "pair": np.array([c.name for _, c, _ in rows]),
        "kind": np.array([KINDS[c.is_hybrid] for _, c, _ in rows]),
        "kl_mean_nats": np.array([c.kl / removals.samples for _, c, _ in rows]),
        "standard_error": np.array([_stderr(c, removals.samples) for _, c, _ in rows]),
        "removed": np.array([removed for _, _, removed in rows]),
    }
