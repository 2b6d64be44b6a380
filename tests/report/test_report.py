import base64
import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.support.made_runs import made_run
from tests.support.verbs import call
from upvit_core.figures.theme import LIGHT, Chart, drawn
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.report import Measurement, plan_report, run_report
from upvit_core.report.page import Page
from upvit_core.runs import RunStore

SHAPE = ModelShape("small <b>", 24, (BlockShape(4, 24, 40),) * 3, (16, 16), (8, 8), 3, 5)


@pytest.fixture(scope="module")
def scores() -> ImportanceScores:
    rng = np.random.default_rng(0)
    values = {key: rng.lognormal(-2, 1.5, width) for key, width in expected_widths(SHAPE).items()}
    return ImportanceScores(values, "kl", "nats", SHAPE, model="mine", model_digest="abc", images=100, seed=7)


@pytest.fixture(scope="module")
def plan(scores: ImportanceScores) -> PruningPlan:
    return plan_uniform(scores, Ratios(0.5, 0.5, 0.25), heads=2)


def figures_of(html: str) -> list[dict]:
    drawn = re.findall(r"Plotly\.newPlot\('figure-\d+', \(f => .*?\)\((\{.*?\})\)\);(?=Plotly|</script>)", html, re.S)
    return [json.loads(text.replace("<\\/", "</")) for text in drawn]


def attached(html: str, name: str) -> str:
    found = re.search(rf'download="{re.escape(name)}" href="data:[^,]*;base64,([^"]+)"', html)
    assert found, f"nothing is attached as {name}"
    return base64.b64decode(found.group(1)).decode()


def test_a_plan_is_told_with_its_numbers_and_needs_nothing_else(scores: ImportanceScores, plan: PruningPlan) -> None:
    html = plan_report(plan, scores, measured=[Measurement("Top-1", "90.0 %", "100 images of <mine>")])
    after = plan.shape_after
    for text in (
        f"{count_parameters(after):,} of {count_parameters(SHAPE):,}",
        f"{count_macs(after):,} of {count_macs(SHAPE):,}",
        plan.digest, scores.digest, "seed 7", "90.0 % · 100 images of &lt;mine&gt;", "12 of 24 channels",
        "2 of 4 heads, 12 of 24 attention channels, 30 of 40 FFN channels", "prune MODEL plan.json",
    ):  # fmt: skip
        assert text in html
    assert PruningPlan.from_json(attached(html, "plan.json")) == plan
    drawn = figures_of(html)
    assert len(drawn) == 3
    for figure in drawn:
        go.Figure({"data": figure["data"], "layout": figure["layout"]})
        assert figure["layout"]["width"] == 680
    assert "small <b>" not in html
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!data:)', outside)
    rows = attached(html, "figure-1.csv").splitlines()
    assert len(rows) == 1 + sum(expected_widths(SHAPE).values())


def test_text_of_a_figure_cannot_end_its_script() -> None:
    page = Page("t", "l")
    page.chart(Chart(drawn([], {"title": {"text": "</script><b>"}}, LIGHT, height=100), "x", "y"))
    assert page.html().count("</script>") == 2


def test_a_run_is_told_with_its_curve_and_commands(tmp_path: Path) -> None:
    run = made_run(RunStore(tmp_path), 0.5)
    store = RunStore(tmp_path)
    html = run_report(store, run.id)
    rows, _ = store.read_metrics(run.id)
    last = [row for row in rows if "top1" in row][-1]
    assert f"{last['top1']:.2f} % of 2,000 test images" in html
    assert "distill --teacher demo" in html
    curve = figures_of(html)[0]["data"][0]
    evaluated = [row["top1"] for row in rows if row["phase"] in ("surgery", "eval", "final")]
    assert curve["y"] == pytest.approx(evaluated)
    assert json.loads(attached(html, "spec.json"))["name"] == run.spec.name
    assert len(attached(html, "metrics.jsonl").splitlines()) == len(rows)


def test_the_verb_writes_a_file(scores: ImportanceScores, plan: PruningPlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    scores.save(tmp_path / "scores.safetensors")
    out = tmp_path / "out" / "r.html"
    told = call("report", tmp_path / "plan.json", "--scores", tmp_path / "scores.safetensors", "--out", out)
    assert told["bytes"] == out.stat().st_size
    assert '"tables":{}' in out.read_text()
    own = ImportanceScores.load(DEMO_FOLDER / "directions.safetensors")
    plan_uniform(own, Ratios(0.5, 0.5, 0.5), basis=Basis.DIRECTIONS).save(tmp_path / "own.json")
    known = ("--scores", DEMO_FOLDER / "directions.safetensors", "--map", DEMO_FOLDER / "map.json")
    call("report", tmp_path / "own.json", *known, "--out", out)
    assert "estimated from 48 measured cuts" in out.read_text()
    run = made_run(RunStore(tmp_path / "runs"), 0.5)
    call("report", run.folder, "--out", tmp_path / "run.html")
    assert run.spec.name in (tmp_path / "run.html").read_text()
