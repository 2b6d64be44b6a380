"""Command lines: quoted, parsed by the program itself, and asking for the run that they came from."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.small_run import any_spec
from upvit_core.cli import app
from upvit_core.runs import DistillSettings, Run, RunSpec, RunStore
from upvit_core.runs.commands import command, commands
from upvit_core.runs.spec import SlurmSettings
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


# A value of every setting and of every field of a run that is no preset's; names of runs and of people are left out.
OTHER = {"alpha": 0.3, "temperature": 2.5, "lr": 1.23456789e-4, "min_lr": 2e-6, "weight_decay": 0.3,
         "warmup_epochs": 0.7, "batch_size": 48, "cutmix": 0.4, "mixup": 0.2, "mix_probability": 0.5,
         "label_smoothing": 0.2, "ema_decay": 0.9, "drop_path": 0.3, "clip_grad": 2.0, "augmentation": "none",
         "amp": "no", "seed": 5, "threads": 2, "workers": 1, "eval_every": 0.5, "eval_images": 300,
         "teacher_top_k": 7, "tensorboard": True, "checkpoint_minutes": 2.5, "from_scratch": True, "layer_decay": 0.6,
         "head_only": True, "feature_weight": 0.25, "sizes": 5, "compile": True, "plain": True}  # fmt: skip
SLURM = SlurmSettings(nodes=2, gpus_per_node=3, cpus_per_process=5, mem_gb=7.5, minutes=90, warning_seconds=60,
                      partition="gpu", account="me", qos="high")  # fmt: skip
FIELDS = {"data": "my $(data)", "data_root": "/where it is", "epochs": 7, "img_size": 40, "device": "cuda:1",
          "priority": -1, "processes": 3}  # fmt: skip
KINDS = {
    "distill": {"teacher": "x;touch y#heads=4", "student": "thin", "executor": "slurm", "slurm": SLURM},
    "finetune": {"student": "x;touch y#heads=4", "in_chans": 1, "head": "new"},
}
NAMES = {"version", "kind", "name", "group", "owner", "created", "teacher", "student", "plan"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_of_a_run_asks_for_every_field_or_names_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OTHER.keys() == DistillSettings.model_fields.keys()
    of_repair = {"repair", "calibration_images"}  # said by the line that cuts
    assert FIELDS.keys() | KINDS["distill"].keys() | KINDS["finetune"].keys() | NAMES | of_repair >= (
        RunSpec.model_fields.keys() - {"settings"}
    )
    presets = PRESETS if kind == "distill" else FINETUNE_PRESETS
    plain = [settings.model_dump() for settings in presets.values()]
    store = RunStore(tmp_path / "my runs")
    for settings in [*plain, *({**chosen, name: value} for chosen in plain for name, value in OTHER.items()), OTHER]:
        spec = RunSpec.model_validate({"kind": kind, "name": "n", **FIELDS, **KINDS[kind], "settings": settings})
        run = Run(store.root / "a-run", spec)
        line, resume, *sentence = commands(run).splitlines()
        order = RunSpec.model_validate({**asked(line, monkeypatch), "name": "n"})
        said, meant = flat(order), flat(spec)
        unsaid = {f"{name} {value}" for name, value in meant.items() if said[name] != value}
        told = sentence[0].removeprefix("# No option says ").removesuffix(".").split(", ") if sentence else []
        assert set(told) == unsaid
        assert shlex.split(resume)[3:] == ["resume", "a-run", "--out", str(store.root)]
    assert len(told) < len(OTHER)


def flat(spec: RunSpec) -> dict[str, object]:
    values = spec.model_dump()
    return values.pop("settings") | (values.pop("slurm") or {}) | values


def test_a_plan_is_cut_by_a_line_of_its_own(tmp_path: Path) -> None:
    spec = any_spec(
        teacher="x;y#size=8,16", student=None, plan={"basis": "directions"}, data="d e", data_root="r", img_size=40
    )
    run = Run(tmp_path / "a-run", spec.model_copy(update={"calibration_images": 9}))
    line = shlex.split(commands(run).splitlines()[0])
    assert line[3:] == ["prune", "x;y", str(tmp_path / "a-run" / "model" / "plan.json"), "--img-size", "40", "--data",
                        "d e", "--root", "r", "--images", "9", "--out", "student"]  # fmt: skip
