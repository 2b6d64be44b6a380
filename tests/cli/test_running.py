"""The recipe that `distill` takes by itself, its words, and that a plan that records repair is repaired again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.support.small_run import CFG, half_plan, small_home, spec_for
from upvit_core.cli import app, running
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.pruning.prune import cut_and_record
from upvit_core.records.plan import PruningPlan
from upvit_core.runs.inputs import build_student
from upvit_core.training.settings import PRESETS

Ask = Callable[..., tuple[dict[str, object], str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher with images, and two students of it: `plain`, and `mended` with repair."""
    home = small_home(tmp_path_factory.mktemp("recipe"))
    teacher = load_model(home / "teacher")
    plan = PruningPlan.from_json(json.dumps(half_plan(teacher.shape)))
    for name, repair in (("plain", False), ("mended", True)):
        student, made = cut_and_record(teacher, plan, repair=repair, data=str(home / "images"), images=30, seed=4)
        save_model(
            student, home / name, shape=plan.shape_after, pretrained_cfg=CFG, plan_json=made.to_json(), name=name
        )
    return home


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The spec of the run that would start, and the output on standard error."""
    orders: list[dict[str, object]] = []
    monkeypatch.setattr(running, "launch_new", lambda order, *_: orders.append(order))

    def call(*arguments: object) -> tuple[dict[str, object], str]:
        given = ["--teacher", home / "teacher", "--data", home / "images", "--epochs", 2, *arguments]
        result = CliRunner().invoke(app, ["distill", *map(str, given)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return orders[-1], result.stderr

    return call


@pytest.mark.parametrize("way", ["--student", "--plan"])
def test_a_repaired_start_gets_small_steps(way: str, home: Path, ask: Ask) -> None:
    plan = home / "mended" / "plan.json"
    order, said = ask(way, home / "mended" if way == "--student" else plan)
    assert order["settings"] == PRESETS["repaired"].model_dump()
    assert said == (
        f"Recipe repaired: {plan} records repair, which large steps and mixed images would undo; --recipe NAME takes "
        "another.\n"
    )
    if way == "--plan":
        assert order["repair"]


def test_another_start_gets_the_letter_s(home: Path, ask: Ask) -> None:
    order, said = ask("--student", home / "plain")
    assert order["settings"] == PRESETS["letter"].model_dump()
    assert said.startswith("Recipe letter: no repair of the student is recorded;")


@pytest.mark.parametrize("option", ["--recipe", "--preset"])
def test_what_is_asked_for_wins(option: str, home: Path, ask: Ask) -> None:
    order, said = ask("--student", home / "mended", option, "demo", "--lr", "2e-4")
    assert order["settings"] == PRESETS["demo"].model_dump() | {"lr": 2e-4}
    assert said == ""
    order, _ = ask("--student", home / "mended", "--lr", "2e-4")
    assert order["settings"] == PRESETS["repaired"].model_dump() | {"lr": 2e-4}


def test_a_run_makes_the_student_of_a_fitted_plan_again(home: Path) -> None:
    plan = json.loads((home / "mended" / "plan.json").read_text())
    spec = spec_for(home).model_copy(update={"plan": plan, "repair": True})
    teacher = load_model(home / "teacher")
    again = build_student(spec, teacher)
    known = load_model(home / "mended").model.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in again.model.state_dict().items())
    assert again.plan_json is not None
    assert json.loads(again.plan_json)["fitted"] == plan["fitted"]
