"""A bundle is a run to be done on another machine: a folder with all but the images, and the command that does it.

Its `spec.json` says `teacher` for a teacher that was a file or folder of this machine and is copied into the bundle (a
hub's or timm's name stays a name), and `student` likewise. The folder of the finished run opens in any studio.
"""

import json
import shutil
import tempfile
from pathlib import Path

from upvit_core.errors import RunError
from upvit_core.files import zipped
from upvit_core.records.source import Source
from upvit_core.runs.commands import command
from upvit_core.runs.folder import read_small
from upvit_core.runs.spec import RunSpec, is_local

README = """# {name}

On a machine with this project and its requirements, in the project's folder:

```bash
{command}
```
{images}
It prints the folder of the run first. Add `--executor slurm` with `--nodes`, `--gpus`, `--partition` and `--minutes` to
have Slurm do it, or start it with `torchrun --nproc-per-node N -m upvit_core …` on N GPUs. Copy the run's folder back
into `runs/` of the studio: it opens on the page Runs, whatever state it is in.
"""


def command_of(spec: RunSpec, folder: str) -> str:
    """The command line that does the bundle in `folder`; it asks for the path of images that only this machine has."""
    return command("distill", order=folder, data="DATA" if is_local(spec.data) else "", out="runs")


def write_order(spec: RunSpec, folder: Path) -> Path:
    """Write a bundle. Raises RunError where the folder exists; reads a local teacher's weights (torch)."""
    if spec.kind == "finetune":
        raise RunError("Only distillation can be taken elsewhere; copy the model and use `finetune` there.")
    if folder.exists():
        raise RunError(f"{folder} exists already; choose another folder.")
    folder.mkdir(parents=True)
    changes: dict[str, object] = {"owner": "", "created": 0, "executor": "local", "slurm": None, "device": "auto"}
    teacher = Source.parse(spec.teacher)
    if is_local(teacher.path):
        _copy_model(teacher, folder / "teacher")
        changes["teacher"] = "teacher"
    if spec.student is not None:
        shutil.copytree(spec.student, folder / "student")
        changes["student"] = "student"
    moved = spec.model_copy(update=changes)
    (folder / "spec.json").write_text(moved.model_dump_json(indent=1), encoding="utf-8")
    if spec.plan is not None:
        (folder / "plan.json").write_text(json.dumps(spec.plan), encoding="utf-8")
    images = "\nDATA is where the images or the text lie there: the same as here.\n" if is_local(spec.data) else ""
    text = README.format(name=spec.name, command=command_of(spec, folder.name), images=images)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def read_order(folder: Path) -> RunSpec:
    """The run that a bundle asks for, with the paths of its teacher and student. Raises RunError."""
    if not (folder / "spec.json").is_file():
        raise RunError(f"{folder} holds no order (spec.json); give a folder that the studio exported.")
    spec = RunSpec.from_json(read_small(folder / "spec.json"), f"spec.json of {folder}")
    copied = {key: folder / key for key in ("teacher", "student") if getattr(spec, key) == key}
    for key, path in copied.items():
        if not path.is_dir():
            raise RunError(f"The order in {folder} has no folder {key}; copy all of it.")
    return spec.model_copy(update={key: str(path.resolve()) for key, path in copied.items()})


def zipped_order(spec: RunSpec, name: str) -> bytes:
    """A bundle as a zip file."""
    with tempfile.TemporaryDirectory() as temporary:
        return zipped(write_order(spec, Path(temporary) / name), name, compress=True)


def _copy_model(source: Source, folder: Path) -> None:
    from upvit_core.models.checkpoint import load_model, save_model

    loaded = load_model(source)
    if not loaded.has_weights:
        raise RunError(f"{source.path} has no trained weights to learn from; choose a trained model as teacher.")
    save_model(
        loaded.model,
        folder,
        shape=loaded.shape,
        pretrained_cfg=loaded.pretrained_cfg,
        name=loaded.name,
        class_names=loaded.class_names,
    )
