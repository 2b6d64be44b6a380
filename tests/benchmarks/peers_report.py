"""Tables and figure of `peers`: means over seeds, with their spread."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import plotly.graph_objects as go

from tests.benchmarks.report import Row, table
from upvit_core.runs.forecast import Outcome, forecast

COLOURS = {"ours": "#0072B2", "peer": "#D55E00", "random": "#6b7480", "scratch": "#6b7480"}
GROUPS = {"ours": "this studio", "peer": "Torch-Pruning", "random": "random channels", "scratch": "from scratch"}


def read(path: Path) -> list[Row]:
    """Rows as they were appended; a torn last line is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def speeds_file(path: Path) -> Path:
    return path.with_suffix(".speed.jsonl")


def with_speeds(path: Path) -> list[Row]:
    """Rows, with what was measured last of their shape's speed."""
    known = {row["widths"]: row for row in read(speeds_file(path))}
    keys = ("images_per_s", "speed_up")
    return [row | {key: known[row["widths"]][key] for key in keys if row.get("widths") in known} for row in read(path)]


def by_way(rows: list[Row], recipe: str = "demo") -> dict[tuple[str, float], dict[int, list[Row]]]:
    """Rows of the seeds, by (way, ratio) and epoch; after training, those of one recipe."""
    epochs: dict[tuple[str, float], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["epoch"] == 0 or row.get("recipe", "demo") == recipe:
            epochs[row["way"], row["ratio"]][row["epoch"]].append(row)
    return epochs


def spread(rows: list[Row], key: str, digits: int = 2) -> str:
    """`87.91 ± 0.12`: mean and standard deviation over seeds; a dash where nothing was measured."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def tables(path: Path) -> None:
    """One table a ratio, best right after surgery first."""
    rows = with_speeds(path)
    epochs, gently = by_way(rows), by_way(rows, "repaired")
    last = max((row["epoch"] for row in rows), default=0)
    for ratio in sorted({row["ratio"] for row in rows}):
        ways = sorted(
            (way for way, r in epochs if r == ratio),
            key=lambda way: -mean(x["top1"] for x in epochs[way, ratio][0]),
        )
        listed = []
        for way in ways:
            own = epochs[way, ratio]
            cut = own[0]
            entry = {"way": way, "MACs": f"{mean(r['macs'] for r in cut) / 1e6:.2f} M"}
            entry |= {f"to {what}, s": f"{mean(r[f'{what}_seconds'] for r in cut):.1f}" for what in ("score", "cut")}
            entry |= {"after surgery": spread(cut, "top1"), "KL": spread(cut, "kl", 3)}
            entry |= {"after one epoch": spread(own[1], "top1")}
            if last > 1:
                entry[f"after {last}"] = spread(own[last], "top1")
                entry[f"after {last}, gently"] = spread(gently[way, ratio][last], "top1")
            entry |= {"images/s": spread(cut, "images_per_s", 0), "× teacher": spread(cut, "speed_up")}
            listed.append(entry)
        settings = {
            key: rows[-1][key] for key in ("images", "test_images", "epochs", "date", "device", "torch", "timm")
        }
        print(f"\n{ratio:.0%} of every component, top-1 in %: {json.dumps(settings)}\n\n{table(listed)}")
        print(f"\nlargest difference in MACs from the target: {largest_difference(rows, ratio):.2%}")
    print(verdict(rows))
    print(f"\nin short\n\n{table(in_short(epochs, gently, last))}")


def in_short(
    epochs: dict[tuple[str, float], dict[int, list[Row]]],
    gently: dict[tuple[str, float], dict[int, list[Row]]],
    last: int,
) -> list[Row]:
    """Every ratio of every way, those that the figure draws first: top-1, and at 50 % how it goes on."""
    ratios = sorted({ratio for _, ratio in epochs})
    drawn = [way for way, _, _ in LINES]
    others = {way: mean(row["top1"] for row in own[0]) for (way, ratio), own in epochs.items() if ratio == 0.5}
    listed = []
    for way in (*drawn, *sorted(set(others) - set(drawn), key=lambda way: -others[way])):
        half = epochs[way, 0.5]
        if not half.get(0):
            continue
        row = {"way": readable_name(way), "to score, s": f"{mean(r['score_seconds'] for r in half[0]):.0f}"}
        row |= {f"{ratio * 100:.0f} %": spread(epochs[way, ratio][0], "top1", 1) for ratio in ratios}
        row |= {f"{n} epoch{'s' * (n > 1)}": spread(half[n], "top1", 1) for n in range(1, last + 1)}
        row |= {f"{last} epochs, gently": spread(gently[way, 0.5][last], "top1", 1)}
        row |= {"KL at 50 %": spread(half[0], "kl", 3), "images/s": spread(half[0], "images_per_s", 0)}
        row |= {"speed-up": spread(half[0], "speed_up")}
        listed.append(row)
    return listed


def readable_name(way: str) -> str:
    """A way as the README names it: its criterion as it is typed, equal ratios for uniform, the letter's own marked."""
    way += " (the letter)" if way == "kl, uniform, channels" else ""
    for criterion in ("kl", "fisher", "refine"):
        way = way.replace(f"{criterion},", f"`{criterion}`,")
    for name in ("taylor", "hessian", "l1", "l2"):
        way = way.replace(f"Torch-Pruning {name}", f"Torch-Pruning {name.capitalize()}")
    return way.replace("uniform", "equal ratios")


def largest_difference(rows: list[Row], ratio: float) -> float:
    return max(abs(r["macs"] / r["macs_target"] - 1) for r in rows if r["ratio"] == ratio and r["epoch"] == 0)


def verdict(rows: list[Row]) -> str:
    """True if the best of ours leads the best of the rest, at every ratio and stage; each with its better recipe."""
    lines = []
    both = [by_way(rows), by_way(rows, "repaired")]
    for ratio in sorted({row["ratio"] for row in rows}):
        for epoch in sorted({row["epoch"] for row in rows if row["ratio"] == ratio}):
            best: dict[bool, tuple[float, float, str]] = {}
            for (way, r), own in (item for ways in both for item in ways.items()):
                if r != ratio or not own.get(epoch):
                    continue
                values = [row["top1"] for row in own[epoch]]
                entry = (mean(values), stdev(values) if len(values) > 1 else 0.0, way)
                ours = own[epoch][0]["kind"] == "ours"
                best[ours] = max(best.get(ours, entry), entry)
            if len(best) == 2:
                stage = "after surgery" if epoch == 0 else f"after epoch {epoch}"
                ours, rest = best[True], best[False]
                lines.append(
                    f"{ratio:.0%} {stage}: ours {ours[0]:.2f} ± {ours[1]:.2f} ({ours[2]}), "
                    f"others {rest[0]:.2f} ± {rest[1]:.2f} ({rest[2]}), ahead by {ours[0] - rest[0]:+.2f}"
                )
    return "\n" + "\n".join(lines)


def forecasts(path: Path, teacher_top1: float = 92.13) -> None:
    """The app's forecast against real runs: every way's, from the runs of the other ways by the same recipe."""
    rows = [row for row in read(path) if row["kind"] != "scratch"]
    kl = {(row["way"], row["ratio"], row["seed"]): row["kl"] for row in rows if row["epoch"] == 0}
    last = max(row["epoch"] for row in rows)
    listed = []
    for recipe in sorted({row.get("recipe", "demo") for row in rows if row["epoch"] == last}):
        runs = [row for row in rows if row["epoch"] == last and row.get("recipe", "demo") == recipe]
        known = [(r["way"], Outcome("", kl[r["way"], r["ratio"], r["seed"]], teacher_top1, r["top1"])) for r in runs]
        bands = [(run, forecast([o for other, o in known if other != way], run.kl, last)) for way, run in known]
        predicted = [(run, band) for run, band in bands if band is not None]
        if not predicted:
            continue
        inside = sum(band.low <= run.top1 <= band.high for run, band in predicted)
        listed.append(
            {
                "recipe": recipe,
                "runs": len(runs),
                "forecast": len(predicted),
                "inside the 80 % band": inside,
                "share": f"{inside / len(predicted):.0%}",
                "width, points": mean(band.high - band.low for _, band in predicted),
                "error of the middle, points": mean(abs(run.top1 - band.middle) for run, band in predicted),
            }
        )
    print(table(listed))


LINES = (
    ("fisher, budget, directions, repaired", "circle", "solid"),
    ("fisher, uniform, directions, repaired", "square", "solid"),
    ("fisher, budget, channels, repaired", "diamond", "dash"),
    ("kl, budget, channels", "triangle-up", "dash"),
    ("kl, uniform, channels", "cross", "dot"),
    ("Torch-Pruning taylor, isomorphic", "circle", "solid"),
    ("Torch-Pruning taylor, uniform", "square", "solid"),
    ("Torch-Pruning hessian, isomorphic", "diamond", "dash"),
    ("Torch-Pruning l2, uniform", "triangle-up", "dot"),
    ("random channels", "x", "dot"),
    ("from scratch", "star", "dot"),
)


def picture(path: Path, out: Path) -> None:
    """Left, top-1 right after surgery against the share removed; right, at 50 %, along the epochs of training."""
    rows = read(path)
    epochs, gently = by_way(rows), by_way(rows, "repaired")
    ratios, last = sorted({row["ratio"] for row in rows}), max(row["epoch"] for row in rows)
    traces: list[Row] = []
    for way, symbol, dash in LINES:
        cuts = [(ratio, epochs[way, ratio][0]) for ratio in ratios if epochs[way, ratio].get(0)]
        if not cuts:
            continue
        trained = sorted(epochs[way, 0.5])
        style = {
            "name": way,
            "legendgroup": way,
            "mode": "lines+markers",
            "marker": {"size": 10, "symbol": symbol},
            "line": {"color": COLOURS[cuts[0][1][0]["kind"]], "width": 2, "dash": dash},
        }
        traces.append({**style, **_points([100 * ratio for ratio, _ in cuts], [own for _, own in cuts])})
        if trained[-1] > 0:
            own = [epochs[way, 0.5][epoch] for epoch in trained]
            traces.append({**style, **_points(trained, own), "xaxis": "x2", "yaxis": "y2", "showlegend": False})
        if cuts[0][1][0]["kind"] == "ours" and len(along := sorted(gently[way, 0.5])) > 1:
            own = [gently[way, 0.5][epoch] for epoch in along]
            line = {
                **style,
                **_points(along, own),
                "name": f"{way}, gently",
                "line": {**style["line"], "color": "#56B4E9"},
            }
            traces.append({**line, "xaxis": "x2", "yaxis": "y2"})
    grid = {"gridcolor": "#dfe3e8", "zeroline": False}
    seeds = len({row["seed"] for row in rows})
    layout = {
        "width": 1320,
        "height": 560,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "Source Sans Pro, sans-serif", "size": 15, "color": "#1f2328"},
        "title": f"Demo ViT, equal MACs, {rows[0]['test_images']:,} test images, {seeds} seed{'s' * (seeds > 1)}; "
        "blue: this studio, pale blue: trained gently, orange: Torch-Pruning",
        "xaxis": {
            "title": "right after surgery; % of every component removed",
            "domain": [0, 0.36],
            "tickvals": [100 * ratio for ratio in ratios],
            **grid,
        },
        "yaxis": {"title": "top-1, %", "range": [0, 96], **grid},
        "xaxis2": {
            "title": "at 50 %; epochs of distillation, 12,000 images each",
            "domain": [0.42, 0.7],
            "anchor": "y2",
            "tickvals": list(range(last + 1)),
            "range": [-0.15, last + 0.15],
            **grid,
        },
        "yaxis2": {"range": [0, 96], "anchor": "x2", **grid},
        "legend": {"font": {"size": 13}, "x": 0.72},
        "margin": {"t": 60, "r": 10},
    }
    screenshot(go.Figure({"data": traces, "layout": layout}), out)


def _points(x: list[float], own: list[list[Row]]) -> Row:
    values = [[row["top1"] for row in rows] for rows in own]
    spreads = [stdev(v) if len(v) > 1 else 0 for v in values]
    return {"x": x, "y": [mean(v) for v in values], "error_y": {"type": "data", "array": spreads, "thickness": 1.3}}


def screenshot(figure: go.Figure, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    width, height = figure.layout.width, figure.layout.height
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "figure.html"
        figure.write_html(page_file, include_plotlyjs=True, config={"staticPlot": True})
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width + 16, "height": height + 16})
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        out.parent.mkdir(parents=True, exist_ok=True)
        page.locator(".js-plotly-plot").screenshot(path=out)
        browser.close()
