"""Tables and figure of `peers`: means over seeds, with their spread."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import plotly.graph_objects as go

from tests.benchmarks.report import table

Row = dict[str, Any]
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


def by_way(rows: list[Row]) -> dict[tuple[str, float], dict[int, list[Row]]]:
    """Rows of the seeds, by (way, ratio) and epoch."""
    found: dict[tuple[str, float], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["way"], row["ratio"]][row["epoch"]].append(row)
    return found


def spread(rows: list[Row], key: str, digits: int = 2) -> str:
    """`87.91 ± 0.12`: mean and standard deviation over seeds; a dash where nothing was measured."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def tables(path: Path) -> None:
    """One table a ratio, best right after surgery first."""
    rows = with_speeds(path)
    found = by_way(rows)
    last = max((row["epoch"] for row in rows), default=0)
    for ratio in sorted({row["ratio"] for row in rows}):
        ways = sorted(
            (way for way, r in found if r == ratio), key=lambda way: -mean(x["top1"] for x in found[way, ratio][0])
        )
        listed = []
        for way in ways:
            own = found[way, ratio]
            cut = own[0]
            entry = {"way": way, "MACs": f"{mean(r['macs'] for r in cut) / 1e6:.2f} M"}
            entry |= {f"to {what}, s": f"{mean(r[f'{what}_seconds'] for r in cut):.1f}" for what in ("score", "cut")}
            entry |= {"after surgery": spread(cut, "top1"), "KL": spread(cut, "kl", 3)}
            entry |= {"after one epoch": spread(own[1], "top1")}
            if last > 1:
                entry[f"after {last}"] = spread(own[last], "top1")
            entry |= {"images/s": spread(cut, "images_per_s", 0), "× teacher": spread(cut, "speed_up")}
            listed.append(entry)
        settings = {
            key: rows[-1][key] for key in ("images", "test_images", "epochs", "date", "device", "torch", "timm")
        }
        print(f"\n{ratio:.0%} of every component, top-1 in %: {json.dumps(settings)}\n\n{table(listed)}")
        print(f"\nlargest difference in MACs from the target: {largest_difference(rows, ratio):.2%}")
    print(verdict(rows))


def largest_difference(rows: list[Row], ratio: float) -> float:
    return max(abs(r["macs"] / r["macs_target"] - 1) for r in rows if r["ratio"] == ratio and r["epoch"] == 0)


def verdict(rows: list[Row]) -> str:
    """Whether the best of ours leads the best of the rest, at every ratio and stage."""
    found = by_way(rows)
    lines = []
    for ratio in sorted({row["ratio"] for row in rows}):
        for epoch in sorted({row["epoch"] for row in rows if row["ratio"] == ratio}):
            best: dict[bool, tuple[float, float, str]] = {}
            for (way, r), own in found.items():
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


def picture(path: Path, out: Path) -> None:
    """Top-1 right after surgery, after one epoch, and after the whole budget, a line a way."""
    rows = read(path)
    found = by_way(rows)
    trained = sorted({r["ratio"] for r in rows if r["epoch"] > 0}) or [0.5]
    ratio = 0.5 if 0.5 in trained else trained[0]
    last = max(row["epoch"] for row in rows)
    traces = []
    ways = [way for way, r in found if r == ratio and found[way, r].get(last)]
    ways.sort(key=lambda way: -mean(row["top1"] for row in found[way, ratio][0]))
    symbols = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
    for number, way in enumerate(ways):
        own = found[way, ratio]
        kind = own[0][0]["kind"]
        epochs = sorted(own)
        values = [[row["top1"] for row in own[epoch]] for epoch in epochs]
        traces.append(
            go.Scatter(
                x=epochs,
                y=[mean(v) for v in values],
                name=way,
                mode="lines+markers",
                line={"color": COLOURS[kind], "width": 2, "dash": "dot" if kind in ("random", "scratch") else "solid"},
                marker={"size": 10, "symbol": symbols[number % len(symbols)]},
                error_y={"type": "data", "array": [stdev(v) if len(v) > 1 else 0 for v in values], "thickness": 1.3},
            )
        )
    layout = {
        "width": 1200, "height": 620, "paper_bgcolor": "white", "plot_bgcolor": "white",
        "font": {"family": "Source Sans Pro, sans-serif", "size": 15, "color": "#1f2328"},
        "title": f"Demo, {ratio:.0%} of every component removed, same MACs; three seeds; blue: this studio",
        "xaxis": {"title": "epochs of distillation (12,000 images each)", "tickvals": list(range(last + 1)),
                  "ticktext": ["right after surgery", *map(str, range(1, last + 1))], "gridcolor": "#dfe3e8"},
        "yaxis": {"title": "top-1, %", "gridcolor": "#dfe3e8"}, "legend": {"font": {"size": 13}},
    }  # fmt: skip
    screenshot(go.Figure(traces, layout), out)


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
