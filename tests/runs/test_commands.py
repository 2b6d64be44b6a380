"""Command lines: quoted, parsed by the program itself, and asking for the run that they came from."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upvit_core.cli import app
from upvit_core.runs import DistillSettings, RunSpec, RunStore
from upvit_core.runs.commands import command, commands
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS


def test_a_command_line() -> None:
    line = command("score", "a model", data="it's", images=0, ratio=0.5, share=1 / 3, none=None, no=False, yes=True)
    assert (
        line == "python -m upvit_core score 'a model' --data 'it'\"'\"'s' --images 0 --ratio 0.5 --share 0.333333 --yes"
    )
    assert command("x", empty="", dashed_name=Path("a b")) == "python -m upvit_core x --dashed-name 'a b'"


def asked(line: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The order that `distill` or `finetune` makes of a line."""
    orders: list[dict[str, object]] = []
    monkeypatch.setattr("upvit_core.cli.running.launch_new", lambda order, *_: orders.append(order))
    result = CliRunner().invoke(app, shlex.split(line)[3:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return orders[0]


@pytest.mark.parametrize("kind", ["distill", "finetune"])
def test_the_lines_of_a_run_ask_for_that_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS["repaired"] if kind == "distill" else FINETUNE_PRESETS["finetune"]
    settings = DistillSettings(**{**preset.model_dump(), "lr": 3e-4, "seed": 5, "from_scratch": True})
    named = {"teacher": "vit#heads=4", "student": "thin"} if kind == "distill" else {"student": "vit#heads=4"}
    spec = RunSpec(
        kind=kind,  # type: ignore[arg-type]
        name="a run",
        data="my data",
        data_root="/where it is",
        epochs=7,
        img_size=40,
        settings=settings,
        **named,  # type: ignore[arg-type]
    )
    run = RunStore(tmp_path / "my runs").create(spec)
    line, resume = commands(run).splitlines()
    order = asked(line, monkeypatch)
    for key in ("teacher", "student") if kind == "distill" else ("student",):
        assert order[key] == getattr(spec, key)
    assert (order["data"], order["data_root"], order["epochs"], order["img_size"]) == ("my data", "/where it is", 7, 40)
    assert order["settings"] == settings.model_dump()
    assert shlex.split(resume)[3:] == ["resume", run.id, "--out", str(run.folder.parent)]
