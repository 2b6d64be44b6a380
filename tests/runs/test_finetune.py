"""Runs of the kind `finetune`: no teacher, a new head, the same worker, checkpoints and metrics as distillation."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.support.small_run import SETTINGS, fork_worker, run_to_end, wait_for, wait_until, weights_of
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate
from upvit_core.models.checkpoint import load_model
from upvit_core.runs import Run, RunSpec, RunStore
from upvit_core.runs.checkpoints import list_checkpoints
from upvit_core.training.settings import DistillSettings


def spec(home: Path, **values: object) -> RunSpec:
    settings = {**SETTINGS, "cutmix": 0.0, "drop_path": 0.0, **values.pop("settings", {})}  # type: ignore[dict-item]
    model = {"kind": "finetune", "name": "there", "student": str(home / "teacher"), "data": str(home / "images")}
    training = {"epochs": 3, "device": "cpu", "settings": DistillSettings(**settings)}
    return RunSpec(**{**model, **training, **values})  # type: ignore[arg-type]


def rows(store: RunStore, run: Run) -> list[dict]:
    return store.read_metrics(run.id)[0]


def test_a_run_without_a_teacher(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = store.create(spec(home, epochs=12, head="new", settings={"lr": 3e-3, "ema_decay": 0.9}))
    run_to_end(store, run)
    told = rows(store, run)
    phases = [row["phase"] for row in told if row["phase"] != "train"]
    assert (phases[0], phases[-1]) == ("start", "final")
    assert phases.count("eval") >= 3
    assert not [row for row in told if {"kl", "kl_teacher", "teacher_top1"} & set(row)]
    assert told[0]["top1"] == pytest.approx(20), "a head of zeros knows nothing of five classes"
    assert told[-1]["top1"] > 45
    result = load_model(run.model)
    assert result.class_names == tuple(f"class{i}" for i in range(5))
    test = open_images(str(home / "images"), "val", pretrained_cfg=result.pretrained_cfg)
    assert evaluate(result.model, test.batches(20)).top1 == pytest.approx(told[-1]["top1"])


def test_a_killed_run_goes_on_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    wish = {"settings": {"checkpoint_minutes": 1e-6, "layer_decay": 0.7}, "in_chans": 1, "img_size": 24}
    whole, run = (store.create(spec(home, **wish)) for _ in range(2))
    run_to_end(store, whole)
    pid = fork_worker(run)
    wait_until(lambda: any(int(path.stem.partition("-")[2]) >= 6 for path in list_checkpoints(run.checkpoints)))
    os.kill(pid, signal.SIGKILL)
    wait_for(pid)
    store.resume(run.id)
    run_to_end(store, run)
    assert "going on from step" in run.log.read_text()
    assert weights_of(run) == weights_of(whole)
    shape = load_model(run.model).shape
    assert (shape.in_chans, shape.img_size) == (1, (24, 24))


def test_head_only_leaves_the_backbone_as_it_was(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = store.create(spec(home, settings={"head_only": True, "ema_decay": 0.5}))
    run_to_end(store, run)
    before, after = (load_model(place).model.state_dict() for place in (home / "teacher", run.model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher": "demo"}, "neither a teacher nor a plan"),
        ({"student": None}, "takes a student"),
        ({"kind": "distill"}, "needs a teacher"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(home: Path, values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(home, **values)
