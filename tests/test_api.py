"""The library's root: what `import upvit_core` offers, and what it costs."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import upvit_core as upvit
from tests.support import ROOT
from upvit_core.errors import PlanError, RunError, ScoresError
from upvit_core.models.checkpoint import LoadedModel

LIGHT = ("ImportanceScores", "ModelShape", "PruningPlan", "WhatIf", "DistillSettings", "count_macs")


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return upvit.load_model("demo")


@pytest.fixture(scope="module")
def half(demo: LoadedModel) -> upvit.PruningPlan:
    scores = upvit.score(demo, criterion="l2")
    return upvit.plan(scores, residual=0.5, attention=0.5, ffn=0.5, heads=3)


def test_importing_the_library_and_its_records_costs_no_torch() -> None:
    use = f"[getattr(upvit_core, name) for name in {LIGHT!r}]"
    code = f"import json, sys, upvit_core; {use}; print(json.dumps([*sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "timm", "streamlit"} & set(json.loads(out))


def test_every_name_is_there_typed_and_listed() -> None:
    tree = ast.parse((ROOT / "upvit_core" / "__init__.py").read_text())
    typed = {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert set(upvit.__all__) == typed - {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    for name in upvit.__all__:
        assert getattr(upvit, name).__doc__, name
    assert set(upvit.__all__) <= set(dir(upvit))
    assert (ROOT / "upvit_core" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'mean'"):
        upvit.mean  # noqa: B018


def test_a_saved_student_opens_as_it_was(demo: LoadedModel, half: upvit.PruningPlan, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in demo.model.state_dict().items()}
    student = upvit.prune(demo, half, data="demo", repair=True, images=32)
    assert (student.shape.embed_dim, student.shape.num_heads) == (demo.shape.embed_dim // 2, 3)
    assert student.plan.fitted is not None
    assert student.plan.fitted.repair
    assert all(torch.equal(tensor, before[name]) for name, tensor in demo.model.state_dict().items())
    upvit.save_model(student, tmp_path / "half")
    again = upvit.load_model(tmp_path / "half")
    assert (again.digest, again.shape, again.name) == (student.digest, student.shape, student.name)
    upvit.save_model(again, tmp_path / "copy")
    assert (tmp_path / "copy" / "plan.json").read_text() == student.plan.to_json()


def test_distilling_changes_only_what_it_returns(demo: LoadedModel, half: upvit.PruningPlan) -> None:
    teacher = replace(demo, model=demo.model.requires_grad_(True))
    student = upvit.prune(teacher, half)
    digest, rows = student.digest, list[dict[str, object]]()
    images = upvit.open_images("demo", "train", pretrained_cfg=demo.pretrained_cfg)
    few = replace(images, source=replace(images.source, labels=images.source.labels[:640]))  # type: ignore[type-var]
    settings = upvit.DistillSettings(batch_size=64, warmup_epochs=0.1, ema_decay=0.0, drop_path=0.0)
    trained = upvit.distill(student, teacher, few, epochs=1, settings=settings, report=rows.append)
    assert (student.digest, len(rows), rows[-1]["step"]) == (digest, 10, 10)
    assert trained.digest != digest
    assert trained.plan == student.plan
    assert all(parameter.requires_grad for parameter in teacher.model.parameters())
    before, after = (upvit.evaluate(m, "demo", teacher=teacher, images=200) for m in (student, trained))
    assert before.kl is not None
    assert after.kl is not None
    assert after.kl < before.kl


def test_a_budget_is_met(demo: LoadedModel) -> None:
    scores = upvit.score(demo, criterion="l2")
    made = upvit.plan(scores, budget="macs=20M,params=400k")
    assert upvit.count_macs(made.shape_after) <= 20e6
    assert upvit.count_parameters(made.shape_after) <= 400e3


def test_errors_say_what_to_give(demo: LoadedModel, half: upvit.PruningPlan) -> None:
    with pytest.raises(ScoresError, match="give data"):
        upvit.score(demo, basis="directions")
    with pytest.raises(PlanError, match="not both"):
        upvit.plan(upvit.score(demo, criterion="l2"), ffn=0.5, budget="macs=20M")
    with pytest.raises(RunError, match="no preset 'fast'"):
        upvit.distill(demo, demo, "demo", epochs=1, settings="fast")
    other = replace(demo, shape=replace(demo.shape, num_classes=3))
    with pytest.raises(RunError, match="3 classes"):
        upvit.distill(other, demo, "demo", epochs=1)
