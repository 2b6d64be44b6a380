"""A run as command lines: what does the same on a machine without a browser."""

from __future__ import annotations

import shlex
from typing import Any

from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS, DistillSettings


def commands(run: Run) -> str:
    """Command lines that do the same on a machine without a browser."""
    spec = run.spec
    tool = "python -m upvit_core"
    if spec.kind == "finetune":
        return _finetune_commands(run, tool)
    teacher, _, heads = spec.teacher.partition("#heads=")
    lines = []
    student = spec.student
    if student is None:
        student = "student"
        repair = f" --repair --images {spec.calibration_images}" if spec.repair else ""
        data = (
            f" --data {shlex.quote(spec.data)}" if spec.repair or (spec.plan or {}).get("basis") == "directions" else ""
        )
        told = f" --num-heads {heads}" if heads else ""
        plan = shlex.quote(str(run.model / "plan.json"))
        lines.append(f"{tool} prune {shlex.quote(teacher)} {plan}{told}{data}{repair} --out {student}")
    runs = shlex.quote(str(run.folder.parent))
    root = f" --root {shlex.quote(spec.data_root)}" if spec.data_root else ""
    lines.append(
        f"{tool} distill --teacher {shlex.quote(teacher)} --student {shlex.quote(student)} "
        f"--data {shlex.quote(spec.data)}{root} --epochs {spec.epochs}{_options(spec)} --out {runs}"
    )
    lines.append(f"{tool} resume {run.id} --out {runs}")
    return "\n".join(lines)


def _finetune_commands(run: Run, tool: str) -> str:
    spec = run.spec
    model, _, heads = (spec.student or "").partition("#heads=")
    runs = shlex.quote(str(run.folder.parent))
    given = {"--num-heads": heads, "--root": spec.data_root, "--in-chans": spec.in_chans, "--img-size": spec.img_size}
    told = "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value)
    told += "" if spec.head == "auto" else f" --head {spec.head}"
    return (
        f"{tool} finetune {shlex.quote(model)} --data {shlex.quote(spec.data)} --epochs {spec.epochs}{told}"
        f"{_options(spec)} --out {runs}\n{tool} resume {run.id} --out {runs}"
    )


def _options(spec: RunSpec) -> str:
    """The nearest preset and what differs from it, as far as the command line has options for it."""
    presets = FINETUNE_PRESETS if spec.kind == "finetune" else PRESETS
    first = next(iter(presets))

    def differing(preset: DistillSettings) -> dict[str, Any]:
        ours, theirs = spec.settings.model_dump(), preset.model_dump()
        return {name: value for name, value in ours.items() if value != theirs[name]}

    name = min(presets, key=lambda preset: len(differing(presets[preset])))
    text = "" if presets is FINETUNE_PRESETS and name == first else f" --preset {name}"
    options = ("lr", "batch_size", "alpha", "temperature", "seed", "checkpoint_minutes")
    for option in (*options[:2], "layer_decay", *options[4:]) if spec.kind == "finetune" else options:
        value = differing(presets[name]).get(option)
        if value is not None:
            text += f" --{option.replace('_', '-')} {value:g}"
    flags = ("from_scratch", "head_only")
    return text + "".join(f" --{flag.replace('_', '-')}" for flag in flags if getattr(spec.settings, flag))
