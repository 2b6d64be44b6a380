"""Elastic runs: from order to folder, killed and resumed, in parts, by two processes, and from the command line."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.runs.test_distributed import SCRIPT
from tests.runs.test_worker import reached, rows_of, without_times
from tests.support import ROOT
from tests.support.small_run import SETTINGS, fork_worker, run_to_end, spec_for, wait_until, weights_of
from tests.support.verbs import call
from upvit_core.api import distill, evaluate, load_model, make_elastic, save_model, slice_model
from upvit_core.errors import RunError
from upvit_core.evaluation import evaluate as evaluate_batches
from upvit_core.models.images import images_for
from upvit_core.pruning.elastic import cut_size, ladder_sizes, open_elastic
from upvit_core.pruning.elastic.training import ElasticForward, ElasticSizes
from upvit_core.records.elastic import LADDER
from upvit_core.runs import DistillSettings, RunSpec
from upvit_core.runs.commands import commands

FAITHFUL = {"alpha": 1000.0, "lr": 1e-4, "cutmix": 0.0, "ema_decay": 0.0, "drop_path": 0.0}
"""Settings that teach a random teacher's answers and no labels."""


@pytest.fixture(scope="module")
def folder(home, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "elastic"
    save_model(make_elastic(load_model(home / "teacher"), str(home / "images"), images=20), path)
    return path


def elastic_spec(home, student, **settings):
    spec = spec_for(home, epochs=2, **settings)
    values = spec.model_dump() | {"kind": "elastic", "plan": None, "student": None if student is None else str(student)}
    return RunSpec(**values)


def unlike_times(rows):
    """Rows without what a clock measured."""
    for row in rows:
        for size in row.get("ladder", ()):
            size.pop("images_per_s")
    return without_times(rows)


def test_a_run_measures_every_size_at_each_evaluation_and_its_folder_is_elastic(home, store, folder):
    run = store.create(elastic_spec(home, folder, **FAITHFUL))
    run_to_end(store, run)
    rows = [row for row in rows_of(store, run) if "ladder" in row]
    assert [rows[0]["phase"], rows[-1]["phase"]] == ["surgery", "final"]
    assert len(rows) >= 4
    for row in rows:
        assert [size["removed"] for size in row["ladder"]] == list(LADDER)
        assert all(size["images_per_s"] > 0 for size in row["ladder"])
        assert row["ladder"][0]["top1"] == row["top1"]
    made = open_elastic(run.model)
    assert made.elastic.origin.steps == 10
    assert made.elastic.moments.keys() == open_elastic(folder).elastic.moments.keys()
    test = images_for(made, str(home / "images"), "val")
    teacher = load_model(home / "teacher").model
    for size, after in zip(rows[-1]["ladder"], ladder_sizes(made.shape), strict=True):
        slow = evaluate_batches(cut_size(made.model, made.elastic, after), test.batches(7), teacher=teacher)
        assert (size["top1"], size["kl_teacher"]) == pytest.approx((slow.top1, slow.kl), abs=1e-5)
    untrained = rows[0]["ladder"][-1]["kl_teacher"]
    assert rows[-1]["ladder"][-1]["kl_teacher"] < untrained


def test_killed_and_resumed_the_weights_and_rows_are_the_same_bit_for_bit(home, store, folder):
    settings = {"drop_path": 0.2, "checkpoint_minutes": 1e-6}
    whole = store.create(elastic_spec(home, folder, **settings))
    run_to_end(store, whole)
    run = store.create(elastic_spec(home, folder, **settings))
    for step in (2, 6):
        pid = fork_worker(run)
        wait_until(lambda step=step: store.state(run.id).step >= step or reached(run, step))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        store.resume(run.id)
    run_to_end(store, run)
    assert weights_of(run) == weights_of(whole)
    assert unlike_times(rows_of(store, run)) == unlike_times(rows_of(store, whole))


def test_without_a_student_one_is_made_of_the_teacher_and_the_commands_say_how(home, store):
    run = store.create(elastic_spec(home, None, teacher_top_k=5).model_copy(update={"calibration_images": 20}))
    run_to_end(store, run)
    assert open_elastic(run.model).elastic.origin.images == 20
    first, second = commands(run).splitlines()[:2]
    assert " elastic " in first
    assert "--student elastic" in second


def test_a_batch_in_parts_has_the_gradients_of_the_whole(home, folder):
    made, teacher = open_elastic(folder), load_model(home / "teacher")
    settings = DistillSettings(**SETTINGS, drop_path=0.0, cutmix=0.0, ema_decay=0)
    gradients = []
    from upvit_core.training.distillation import Distillation, make_accelerator

    for parts in (1, 2):
        student = open_elastic(folder).model
        images = images_for(teacher, str(home / "images"), "train")
        job = Distillation.on_images(
            student, teacher.model, images, made.pretrained_cfg, settings, epochs=1, num_classes=5,
            accelerator=make_accelerator("cpu", "no"), sizes=ElasticSizes(made.elastic, settings),
        )  # fmt: skip
        job.parts = parts
        x, y = next(job.batches.steps(0, 1))
        job.train_step(x, y)
        gradients.append([parameter.grad.clone() for parameter in student.parameters()])
    for whole, part in zip(*gradients, strict=True):
        assert torch.allclose(whole, part, atol=1e-5)


def test_a_size_of_the_training_module_is_the_slice_with_its_gradients(folder):
    made = open_elastic(folder)
    x, after = torch.randn(3, 3, 16, 16), ladder_sizes(made.shape)[3]
    full, x = made.model.double(), x.double()
    logits = ElasticForward(full, made.elastic).eval()(x, after)
    assert torch.allclose(logits, cut_size(full, made.elastic, after)(x), atol=1e-9)
    logits.square().sum().backward()
    slope = sum(float(p.grad.square().sum()) for p in full.parameters() if p.grad is not None)
    moved, losses = 1e-6 / slope**0.5, []
    for sign in (1, -1):
        there = copy.deepcopy(full)
        with torch.no_grad():
            for parameter, own in zip(there.parameters(), full.parameters(), strict=True):
                parameter += sign * moved * (0 if own.grad is None else own.grad)
            losses.append(cut_size(there, made.elastic, after)(x).square().sum().item())
    assert (losses[0] - losses[1]) / (2 * moved) == pytest.approx(slope, rel=1e-4)
    assert full.head.weight.grad[:, after.embed_dim :].any(), "what is cut away is learnt from, through the repair"


def test_each_step_has_the_widest_and_the_narrowest_and_drawn_sizes_around_the_ladder(folder):
    made = open_elastic(folder)
    sizes = ElasticSizes(made.elastic, DistillSettings(sizes=5, seed=3))
    ends = [made.elastic.shape, ladder_sizes(made.elastic.shape)[-1]]
    steps = [sizes.draw(step) for step in range(200)]
    assert all([step[0], step[1]] == ends and len(step) == 5 for step in steps)
    assert sizes.draw(7) == ElasticSizes(made.elastic, DistillSettings(sizes=5, seed=3)).draw(7)
    drawn = np.array(
        [[s.embed_dim / 16, s.blocks[0].attention / 16, s.blocks[0].ffn / 64] for t in steps for s in t[2:]]
    )
    assert (drawn >= 0.25 - 1e-9).all()
    spread = drawn[:, 2] - drawn[:, 0]
    assert 0.05 < spread.std() < 0.25
    assert np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1] > 0.5


def test_an_elastic_order_with_a_plan_or_a_feature_term_is_refused(home, folder):
    for changes in ({"plan": {}}, {"settings": DistillSettings(feature_weight=1.0)}):
        values = elastic_spec(home, folder).model_dump() | changes
        with pytest.raises(RunError, match="an elastic run takes no plan"):
            RunSpec.from_json(json.dumps(values, default=lambda value: value.model_dump()))


def test_two_processes_follow_the_curve_of_one(home, folder, tmp_path):
    script = tmp_path / "train.py"
    elastic = f"""from upvit_core.pruning.elastic import open_elastic
from upvit_core.pruning.elastic.training import ElasticSizes
made = open_elastic({str(folder)!r})
student, settings = made.model, settings
job = Distillation(student, teacher, batches, settings, epochs=2, num_classes=5, accelerator=accelerator,
                   sizes=ElasticSizes(made.elastic, settings))
"""
    lines = [elastic if line.startswith("job = ") else line for line in SCRIPT.splitlines()]
    script.write_text("\n".join(lines))
    curves = []
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, str(script), str(ROOT), str(home / "images")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("ROWS")]
        assert found, done.stderr[-2000:]
        curves.append(json.loads(found[0].removeprefix("ROWS"))[1])
    assert len(curves[0]) == 10
    for a, b in zip(*curves, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-5)


def test_the_whole_way_make_slice_distil_slice_again_and_stock_timm_shows_the_accuracy(home, tmp_path):
    data = ("--data", home / "images")
    call("elastic", home / "teacher", *data, "--images", 20, "--out", tmp_path / "made")
    half = ("--residual", 0.5, "--attention", 0.5, "--ffn", 0.5)
    call("slice", tmp_path / "made", *half, "--out", tmp_path / "before")
    options = ("--epochs", 1, "--batch-size", 8, "--device", "cpu", "--out", tmp_path / "runs")
    ran = call("distill", "--teacher", home / "teacher", "--student", tmp_path / "made", *data, *options)
    run = ran["run"]
    settings = RunSpec.from_json(Path(run, "spec.json").read_text()).settings
    assert (settings.lr, settings.cutmix, settings.sizes) == (1e-4, 0.0, 3), "small steps: the start is repaired"
    call("slice", os.path.join(run, "model"), *half, "--out", tmp_path / "after")
    rows = [json.loads(line) for line in open(os.path.join(run, "metrics.jsonl"))]  # noqa: SIM115
    shown = next(s for s in rows[-1]["ladder"] if s["removed"] == 0.5)
    stock = timm.create_model(f"local-dir:{tmp_path / 'after'}", pretrained=True).eval()
    test = images_for(load_model(tmp_path / "after"), str(home / "images"), "val")
    assert evaluate_batches(stock, test.batches(20)).top1 == pytest.approx(shown["top1"])
    before = load_model(tmp_path / "before").model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items())


def test_the_library_distils_all_sizes_of_an_elastic_model(home, folder):
    teacher, settings = load_model(home / "teacher"), DistillSettings(**SETTINGS | FAITHFUL)
    made = open_elastic(folder)
    trained = distill(made, teacher, str(home / "images"), epochs=2, settings=settings)
    assert trained.elastic.origin.weights == trained.digest == trained.scores.model_digest != made.digest
    shares = {"residual": 0.75, "attention": 0.75, "ffn": 0.75}
    before, after = (
        evaluate(slice_model(model, **shares), str(home / "images"), teacher=teacher).kl for model in (made, trained)
    )
    assert after < before
    rows: list[dict[str, float]] = []
    distill(made, teacher, str(home / "images"), epochs=4, report=rows.append)
    assert 2e-5 < max(row["lr"] for row in rows) <= 1e-4, "small steps: the start is repaired"
