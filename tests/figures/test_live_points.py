"""The live data that a browser gets about runs, against the rows that were written."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.made_runs import ladder
from upvit_core.atomic import read_lines
from upvit_core.figures.evaluations import Points
from upvit_core.figures.live import COLUMNS, MOST, PHASES, counts, published, since, titles
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec


def evaluation(step: int, phase: str = "eval", **more: Any) -> dict[str, Any]:
    return {"phase": phase, "step": step, "top1": 80.0 + step, "images_per_s": 900.0, "images": 2000, **more}


def train(step: int, **more: Any) -> dict[str, Any]:
    return {"phase": "train", "step": step, "loss": 1.0 / (step + 1), "epoch": step / 10, "seconds": step, **more}


def test_parts_put_together_are_every_row_once() -> None:
    rng = random.Random(0)
    rows = [evaluation(0, "teacher"), evaluation(0, "surgery")]
    rows += [evaluation(i) if rng.random() < 0.2 else train(i) for i in range(1, 400)]
    points, told, at = Points(), {kind: [] for kind in COLUMNS}, dict.fromkeys(COLUMNS, 0)
    while rows:
        points.add(rows[: (size := rng.randint(0, 9))])
        told_now = {kind: since(points, kind, at[kind]) for kind in COLUMNS}
        for kind, (first, following, columns) in told_now.items():
            assert first == at[kind]
            told[kind] += columns.get("step", [])
            at[kind] = following
        for row in rows[:size]:
            kind = "train" if row["phase"] == "train" else "evals"
            if row["phase"] != "teacher":
                assert row["step"] in told[kind]
        rows = rows[size:]
    assert all(len(steps) == at[kind] == counts(points)[kind] for kind, steps in told.items())
    assert since(points, "evals", 0)[2]["phase"][:2] == [PHASES.index("surgery"), PHASES.index("eval")]


def test_many_points_keep_their_extremes_and_ends() -> None:
    rng = random.Random(1)
    losses = [rng.random() for _ in range(20_000)]
    losses[7_777], losses[3_333] = 99.0, -99.0
    points = Points()
    points.add(train(i, loss=loss) for i, loss in enumerate(losses))
    first, following, columns = since(points, "train", 0)
    assert (first, following) == (0, 20_000)
    assert len(columns["step"]) <= MOST + 2
    assert {0, 3_333, 7_777, 19_999} <= set(columns["step"])
    assert columns["loss"] == pytest.approx([losses[step] for step in columns["step"]], rel=1e-5)
    assert len(since(points, "train", 19_990)[2]["step"]) == 10


def test_nonsense_is_left_out_and_everything_is_json() -> None:
    points = Points()
    points.add(
        [{"phase": "eval"}, {"phase": "eval", "top1": "x", "images_per_s": 1}, {"phase": 3}, {"step": 1},
         train(1, loss=math.nan), train(2, loss=math.inf), train(3, loss=2), {"phase": "train", "step": "x"}]
    )  # fmt: skip
    assert counts(points) == {"evals": 0, "train": 3, "marks": 0}
    part = json.loads(json.dumps(since(points, "train", 0), allow_nan=False))
    assert part[2]["loss"] == [None, None, 2]
    assert "features" not in part[2]


def test_evaluations_without_labels_are_rows_without_top1(tmp_path: Path) -> None:
    run = Run(tmp_path, RunSpec.model_construct())
    run.append_metrics({"phase": "eval", "step": 3, "top1": math.nan, "top5": math.nan, "cosine": 0.5})
    rows = read_lines(run.metrics)[0]
    assert rows == [{"phase": "eval", "step": 3, "cosine": 0.5}]
    assert since(Points(rows), "evals", 0)[2]["cosine"] == [0.5]


def test_every_size_of_an_elastic_evaluation_is_sent_and_nonsense_is_not() -> None:
    points = Points(
        [evaluation(0, "surgery", ladder=ladder([91.0, 40.0])), evaluation(1), evaluation(2, ladder=[3, {}])]
    )
    sent = json.loads(json.dumps(since(points, "evals", 0)[2]["ladder"]))
    assert sent == [[[0, 1, 91, 900, 1e6, 0.09], [75, 4, 40, 3600, 62500, 0.6]], None, None]
    assert "ladder" not in since(points, "evals", 1)[2]


def test_titles_say_how_it_was_measured_where_runs_agree() -> None:
    how = {"device": "CPU", "batch_size": 32, "dtype": "float32", "threads": 1}
    first, second = Points(), Points()
    first.add([evaluation(0, "teacher", **how), evaluation(0, "surgery")])
    second.add([evaluation(0, "teacher", **{**how, "threads": 2}), evaluation(0, "surgery", images=500)])
    turns = "speed, times the original, in turns"
    alone = titles([first], "top1")
    assert alone["x"] == f"{turns} · CPU, batch 32, float32, 1 thread"
    assert alone["y"] == "top-1, % of 2,000 test images"
    both = titles([first, second], "top1")
    assert both["x"] == f"{turns} on several devices or settings"
    assert both["y"] == "top-1, % of 500 or 2,000 test images"
    assert titles([], "top1")["x"] == turns


def test_published_points_have_speeds() -> None:
    assert {"DeiT-B", "UP-DeiT-S"} <= {name for name, *_ in published()}
    assert all(speed > 0 and top1 > 0 for _, speed, top1, _ in published())
