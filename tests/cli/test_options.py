"""Model and data options are one set on every verb that takes a model."""

from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from tests.support.verbs import call
from upvit_core.cli import app
from upvit_core.cli.options import DataOptions, Model, ModelOptions, takes_options
from upvit_core.errors import RunError
from upvit_core.records.plan import PruningPlan

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPENING = {field.name for field in fields(ModelOptions)}


def parameters(verb: str) -> set[str]:
    return {parameter.name for parameter in COMMANDS[verb].params}


def test_every_verb_that_takes_a_model_opens_it_by_the_same_options() -> None:
    verbs = {verb for verb in COMMANDS if {"model", "teacher"} & parameters(verb)}
    assert verbs == {
        *("score", "score-blocks", "compare", "prune", "evaluate", "profile", "export", "calibrate"),
        *("distill", "elastic", "finetune", "report", "map"),
    }
    for verb in verbs:
        assert parameters(verb) >= OPENING, verb
        help_texts = {p.name: p.help for p in COMMANDS[verb].params if p.name in OPENING}
        assert help_texts == {p.name: p.help for p in COMMANDS["score"].params if p.name in OPENING}


def test_every_verb_that_takes_data_knows_its_root() -> None:
    verbs = {verb for verb in COMMANDS if "data" in parameters(verb)}
    assert len(verbs) == 11
    assert all("root" in parameters(verb) for verb in verbs)


def test_records_in_a_signature_become_options() -> None:
    seen: list[tuple[object, ...]] = []
    verbs = typer.Typer()

    @verbs.command()
    @takes_options
    def verb(model: Model, opening: ModelOptions, dataset: DataOptions, last: int = 3) -> None:
        seen.append((model, opening, dataset, last))

    done = CliRunner().invoke(verbs, ["deit", "--no-pretrained", "--data", "demo", "--num-heads", "6"])
    assert done.exit_code == 0, done.output
    assert seen == [("deit", ModelOptions("6", pretrained=False), DataOptions("demo"), 3)]
    assert CliRunner().invoke(verbs, ["deit"]).exit_code == 2, "--data is missing"


def test_prune_and_export_without_trained_weights(tmp_path: Path) -> None:
    scores, plan, thin = tmp_path / "s.safetensors", tmp_path / "plan.json", tmp_path / "thin"
    shape_only = ("deit_tiny_patch16_224", "--no-pretrained", "--img-size", 32, "--device", "cpu")
    call("score", *shape_only, "--criterion", "l2", "--out", scores)
    call("plan", scores, "--residual", 0.5, "--attention", 0.5, "--ffn", 0.5, "--out", plan)
    pruned = call("prune", *shape_only, plan, "--out", thin)
    assert PruningPlan.load(plan).shape_after.img_size == (32, 32)
    assert call("profile", thin)["params"] == pruned["params"]
    exported = call("export", *shape_only, "--format", "timm", "--out", tmp_path / "whole")
    assert exported["stock_timm"] is True


def test_a_teacher_without_weights_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="leave out --no-pretrained"):
        call("distill", "--teacher", "deit_tiny_patch16_224", "--no-pretrained", "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_student_that_is_not_there_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    data = ["--data", "demo", "--epochs", 1, "--preset", "demo"]
    with pytest.raises(RunError, match="There is no student"):
        call("distill", "--teacher", "demo", "--student", tmp_path / "nothere", *data, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["distill", "finetune"])
def test_a_run_is_asked_for_with_the_same_options(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[dict[str, object]] = []
    monkeypatch.setattr("upvit_core.cli.running.launch_new", lambda asked, *_: orders.append(asked))
    model = ["--teacher", "vit", "--student", "thin"] if verb == "distill" else ["vit", "--no-pretrained"]
    options = ["--num-heads", "4", "--img-size", "40", "--device", "cpu", "--data", "x", "--root", "y"]
    done = CliRunner().invoke(app, [verb, *model, *options, "--epochs", "2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (asked,) = orders
    assert asked["teacher" if verb == "distill" else "student"] == "vit#heads=4"
    assert (asked["img_size"], asked["device"], asked["data"], asked["data_root"]) == (40, "cpu", "x", "y")
    settings = asked["settings"]
    assert isinstance(settings, dict)
    assert settings["from_scratch"] is (verb == "finetune")
