"""Two plans over the same scores: every block as a pair of rows, A above B; what only one keeps stands out."""

from collections.abc import Sequence

import numpy as np

from upvit_core.figures.theme import COLOURS, TITLES, Chart, Spec, Theme, axis, drawn, lines, row_title
from upvit_core.planning.difference import Difference
from upvit_core.records.scores import ImportanceScores

NEITHER, BOTH, ONLY = 0, 1, 2
WORDS = np.array(["removed here", "kept by both", "kept by this one only"])


def draw_plan_difference(scores: ImportanceScores, differences: Sequence[Difference], theme: Theme) -> Chart:
    """Columns are channels, most important first in each block; the place of a row says which plan it is."""
    components = [c for c in COLOURS if any(d.component == c for d in differences)]
    parts = {c: [d for d in differences if d.component == c] for c in components}
    heights = {c: 26.0 * len(rows) if len(rows) > 1 else 44.0 for c, rows in parts.items()}
    gap, top, bottom = 78.0, 34.0, 46.0
    inner = sum(heights.values()) + gap * (len(components) - 1)
    traces: list[Spec] = []
    layout: Spec = {"annotations": []}
    start, summaries = inner, []
    for number, component in enumerate(components, start=1):
        rows, height = parts[component], heights[component]
        width = max(len(d.in_a) for d in rows)
        cells = np.full((2 * len(rows), width), np.nan, np.float32)
        channel = np.zeros((2 * len(rows), width), np.int32)
        for r, d in enumerate(rows):
            order = np.argsort(-scores.values[d.key], kind="stable")
            for half, own, other in ((0, d.in_a, d.in_b), (1, d.in_b, d.in_a)):
                state = np.where(own, np.where(other, BOTH, ONLY), NEITHER)
                cells[2 * r + half, : len(order)] = state[order]
                channel[2 * r + half, : len(order)] = order
        colours = [theme.panel, theme.quiet, COLOURS[component]]
        scale = [[at, colour] for i, colour in enumerate(colours) for at in (i / 3, (i + 1) / 3)]
        row = "stage" if component == "residual" else "block"
        plan = np.where(np.arange(2 * len(rows)) % 2 == 0, "A", "B")[:, None].repeat(width, 1)
        text = WORDS[np.nan_to_num(cells).astype(int)]
        block = np.arange(2 * len(rows))[:, None].repeat(width, 1) // 2
        where = "" if len(rows) == 1 else f"{row} %{{customdata[3]}} · "
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        traces.append(
            {
                **{"type": "heatmap", "z": cells, "zmin": -0.5, "zmax": 2.5, "colorscale": scale, "showscale": False},
                "customdata": np.stack([plan.astype(object), text, channel, block], axis=-1),
                "hovertemplate": where
                + "plan %{customdata[0]}: channel %{customdata[2]}, %{customdata[1]}<extra></extra>",
                **{"ygap": 1, **axes},
            }
        )
        for r in range(1, len(rows)):
            ends = [-0.5, width - 0.5], [2 * r - 0.5] * 2
            traces.append(lines(*ends, theme.surface, 5, hoverinfo="skip", **axes))
        layout[f"xaxis{number}"] = axis(
            theme, f"{TITLES[component]} channels, most important first", anchor=f"y{number}", showgrid=False,
            ticks="outside", ticklen=4, nticks=10, range=[-0.5, width - 0.5],
        )  # fmt: skip
        ticks = [f"{r if len(rows) > 1 else ''} A" for r in range(len(rows))]
        layout[f"yaxis{number}"] = axis(
            theme, f"{row}, plan" if len(rows) > 1 else "plan", anchor=f"x{number}", showgrid=False, ticks="",
            domain=[(start - height) / inner, start / inner], range=[2 * len(rows) - 0.5, -0.5],
            tickvals=[v for r in range(len(rows)) for v in (2 * r, 2 * r + 1)],
            ticktext=[t for first in ticks for t in (first.strip(), "B")],
        )  # fmt: skip
        both, a, b, neither = (sum(d.counts[i] for d in rows) for i in range(4))
        line = f"{TITLES[component]}: both keep {both:,}, only A {a:,}, only B {b:,}, neither {neither:,}"
        summaries.append(line)
        layout["annotations"].append(row_title(line, start / inner, component, theme))
        start -= height + gap
    figure = drawn(traces, layout, theme, height=int(inner + top + bottom), margin=(64, 16, int(top), int(bottom)))
    return Chart(figure, "What A keeps and B drops", ". ".join(summaries) + ".", lambda: _table(scores, differences))


def _table(scores: ImportanceScores, differences: Sequence[Difference]) -> dict[str, np.ndarray]:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("part", "channel", "score", "kept_by_a", "kept_by_b")}
    for d in differences:
        values = scores.values[d.key]
        columns["part"].append(np.full(len(values), d.key))
        columns["channel"].append(np.arange(len(values)))
        columns["score"].append(values)
        columns["kept_by_a"].append(d.in_a)
        columns["kept_by_b"].append(d.in_b)
    return {name: np.concatenate(parts) for name, parts in columns.items()}
