"""Command lines that do the same on a machine without a browser: the builder of all of them, and a run's lines."""

import shlex

from upvit_core.records.source import Source
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS, DistillSettings

OPTIONS = ("lr", "batch_size", "alpha", "temperature", "seed", "checkpoint_minutes")
FINETUNE_OPTIONS = ("lr", "batch_size", "layer_decay", "seed", "checkpoint_minutes")


def command(verb: str, *arguments: object, **options: object) -> str:
    """One command line, quoted for a shell.

    An option that is True is a flag; those that are None, False or empty are left out.
    """
    words = ["python -m upvit_core", verb, *(shlex.quote(str(argument)) for argument in arguments)]
    for name, value in options.items():
        if value is None or value is False or value == "":
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(shlex.quote(f"{value:.6g}" if isinstance(value, float) else str(value)))
    return " ".join(words)


def commands(run: Run) -> str:
    """The lines of a run: cut the student where the run does, train, go on after a stop."""
    spec, runs = run.spec, run.folder.parent
    resume = command("resume", run.id, out=runs)
    if spec.kind == "finetune":
        source = Source.parse(spec.student or "")
        tune = command(
            "finetune",
            source.path,
            data=spec.data,
            epochs=spec.epochs,
            **source.flags,
            root=spec.data_root,
            in_chans=spec.in_chans,
            img_size=spec.img_size,
            head="" if spec.head == "auto" else spec.head,
            **_options(spec),
            out=runs,
        )
        return f"{tune}\n{resume}"
    source = Source.parse(spec.teacher)
    teacher = source.path
    lines = []
    if spec.student is None:
        is_rotated = (spec.plan or {}).get("basis") == "directions"
        cut = command(
            "prune",
            teacher,
            run.model / "plan.json",
            **source.flags,
            data=spec.data if spec.repair or is_rotated else "",
            repair=spec.repair,
            images=spec.calibration_images if spec.repair else None,
            out="student",
        )
        lines.append(cut)
    train = command(
        "distill",
        teacher=teacher,
        **source.flags,
        img_size=spec.img_size,
        student=spec.student or "student",
        data=spec.data,
        root=spec.data_root,
        epochs=spec.epochs,
        **_options(spec),
        out=runs,
    )
    return "\n".join([*lines, train, resume])


def _options(spec: RunSpec) -> dict[str, object]:
    """The nearest preset and what differs from it, as far as the command line has options for it."""
    presets, names = (FINETUNE_PRESETS, FINETUNE_OPTIONS) if spec.kind == "finetune" else (PRESETS, OPTIONS)
    settings = spec.settings.model_dump()

    def differing(preset: DistillSettings) -> dict[str, object]:
        return {name: settings[name] for name, value in preset.model_dump().items() if settings[name] != value}

    preset = min(presets, key=lambda name: len(differing(presets[name])))
    changed = differing(presets[preset])
    is_default = presets is FINETUNE_PRESETS and preset == next(iter(presets))
    flags = {flag: settings[flag] for flag in ("from_scratch", "head_only")}
    return {"preset": None if is_default else preset, **{name: changed.get(name) for name in names}, **flags}
