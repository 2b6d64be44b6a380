"""Command lines that do the same on a machine without a browser: the builder of all of them, and a run's lines."""

import shlex

from upvit_core.records.source import Source
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS

EITHER = ("lr", "batch_size", "seed", "workers", "checkpoint_minutes", "from_scratch", "compile",
          "plain")  # settings with an option  # fmt: skip
OPTIONS = (*EITHER, "alpha", "temperature", "feature_weight", "teacher_top_k", "sizes", "tensorboard")
FINETUNE_OPTIONS = (*EITHER, "layer_decay", "head_only")
SLURM_OPTIONS = {"nodes": "nodes", "gpus_per_node": "gpus", "partition": "partition", "minutes": "minutes",
                 "cpus_per_process": "cpus", "mem_gb": "mem_gb", "account": "account", "qos": "qos"}  # fmt: skip


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
    """The lines of a run: cut the student where the run does, train, go on after a stop; and what no option says."""
    spec, runs = run.spec, run.folder.parent
    options, unsaid = _options(spec)
    lines, arguments, named = [], [], {}
    if spec.kind == "finetune":
        source = Source.parse(spec.student or "")
        options |= {"in_chans": spec.in_chans, "head": "" if spec.head == "auto" else spec.head}
        arguments = [source.path]
    else:
        source = Source.parse(spec.teacher)
        named = {"teacher": source.path, "student": spec.student or "student"}
        if spec.student is None and spec.kind == "elastic":
            named["student"] = "elastic"
            lines.append(_make_elastic(spec, source))
        elif spec.student is None:
            lines.append(_cut(run, source))
    verb = "finetune" if spec.kind == "finetune" else "distill"
    lines += [
        command(
            verb, *arguments, **named, **_opening(spec, source), data=spec.data,
            root=spec.data_root, epochs=spec.epochs, **options, device="" if spec.device == "auto" else spec.device,
            out=runs,
        ),
        command("resume", run.id, out=runs),
    ]  # fmt: skip
    if unsaid:
        lines.append(f"# No option says {', '.join(f'{name} {value}' for name, value in unsaid.items())}.")
    return "\n".join(lines)


def _opening(spec: RunSpec, source: Source) -> dict[str, object]:
    """Options of the model; the run's own image size goes before that of the source."""
    return {**source.flags, **({"img_size": spec.img_size} if spec.img_size else {})}


def _make_elastic(spec: RunSpec, source: Source) -> str:
    return command(
        "elastic", source.path, **_opening(spec, source), data=spec.data, root=spec.data_root,
        images=spec.calibration_images, seed=spec.settings.seed or None,
        device="" if spec.device == "auto" else spec.device, out="elastic",
    )  # fmt: skip


def _cut(run: Run, source: Source) -> str:
    spec = run.spec
    fits = spec.repair or (spec.plan or {}).get("basis") == "directions"
    return command(
        "prune",
        source.path,
        run.model / "plan.json",
        **_opening(spec, source),
        data=spec.data if fits else "",
        root=spec.data_root if fits else "",
        repair=spec.repair,
        images=spec.calibration_images if fits else None,
        device="" if spec.device == "auto" else spec.device,
        out="student",
    )


def _options(spec: RunSpec) -> tuple[dict[str, object], dict[str, object]]:
    """The preset that leaves the least unsaid with options for what differs from it, and what has no option."""
    is_distill = spec.kind != "finetune"
    presets, names = (PRESETS, OPTIONS) if is_distill else (FINETUNE_PRESETS, FINETUNE_OPTIONS)
    settings = spec.settings.model_dump()

    def differing(preset: str) -> tuple[dict[str, object], dict[str, object]]:
        plain = presets[preset].model_dump()
        changed = {name: value for name, value in settings.items() if value != plain[name]}
        said = {name: changed[name] for name in names if changed.get(name) is not None}
        return said, {name: value for name, value in changed.items() if name not in said}

    preset = min(presets, key=lambda name: tuple(map(len, reversed(differing(name)))))
    said, unsaid = differing(preset)
    said = {name: value if isinstance(value, bool) else str(value) for name, value in said.items()}
    options = {"preset": preset if is_distill or preset != "finetune" else None, **said}
    queueing: dict[str, object] = {
        "priority": spec.priority or None,
        "processes": spec.processes if spec.processes > 1 else None,
    }
    if spec.executor == "slurm":
        asked = (spec.slurm or SlurmSettings()).model_dump()
        queueing |= {"executor": "slurm", "processes": spec.processes}
        queueing |= {option: str(asked[name]) for name, option in SLURM_OPTIONS.items() if asked[name] is not None}
        unsaid |= {name: asked[name] for name in asked.keys() - SLURM_OPTIONS.keys()}
    if is_distill:
        return options | queueing, unsaid
    return options, unsaid | {name: value for name, value in queueing.items() if value is not None}
