"""Files of the teacher's logits that runs of one folder share, and their removal when no run needs them."""

import json
from collections.abc import Iterator, Mapping
from shutil import disk_usage

import torch
from torch import nn

from upvit_core.data import ImageSet
from upvit_core.errors import RunError
from upvit_core.files import Content, digest
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import ACTIVE, RESUMABLE, RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.distillation import Distillation
from upvit_core.training.teacher_cache import TeacherStore

FOLDER = ".teacher"
SETTINGS = ("seed", "augmentation", "cutmix", "mixup", "mix_probability", "teacher_top_k")
TRANSFORM = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")


def open_teacher_cache(
    run: Run, training: Distillation, images: ImageSet, cfg: Mapping[str, object]
) -> TeacherStore | None:
    """The store shared by runs that show the teacher the same images; None where the settings ask for none.

    `images` are the training set, which `cfg` says how to prepare.
    Raises RunError where features are wanted, which are not stored, or the disk has no room.
    """
    settings, accelerator, batches = run.spec.settings, training.accelerator, training.batches
    if settings.teacher_top_k is None or training.teacher is None:
        return None
    if settings.feature_weight:
        raise RunError("feature_weight needs the teacher itself; leave teacher_top_k out, or feature_weight.")
    if not training.num_classes:
        raise RunError("teacher_top_k keeps logits, and this model gives features; leave it out.")
    identity = [
        _digest(training.teacher),
        images.digest,
        {key: getattr(settings, key) for key in SETTINGS},
        {key: cfg.get(key) for key in TRANSFORM},
        *(batches.batch_size, accelerator.mixed_precision, accelerator.process_index, accelerator.num_processes),
    ]
    key = digest(json.dumps(identity, default=str))
    path = run.folder.parent / FOLDER / f"{cache_key(run.spec)}-{key}.bin"
    store = TeacherStore(path, images=len(batches.positions), classes=training.num_classes, k=settings.teacher_top_k)
    missing = training.total_steps * store.step_bytes - path.stat().st_blocks * 512
    if missing > disk_usage(path.parent).free:
        store.close()
        raise RunError(
            f"The teacher's answers need {missing / 1e9:.1f} GB more than the disk has; choose a smaller teacher_top_k "
            "or leave it out."
        )
    return store


def drop_unwanted(run: Run) -> None:
    """Remove the files that this run used, unless another run that may still go on shares them."""
    store = RunStore(run.folder.parent)
    name = cache_key(run.spec)
    for summary in store.list():
        waits = summary.state.state in (*ACTIVE, *RESUMABLE)
        if waits and summary.id != run.id and summary.spec is not None and cache_key(summary.spec) == name:
            return
    for path in (store.root / FOLDER).glob(f"{name}-*.bin"):
        path.unlink(missing_ok=True)


def cache_key(spec: RunSpec) -> str:
    """Equal for runs that can share answers, as far as their specs tell."""
    shared = [spec.teacher, spec.data, spec.data_root, *(getattr(spec.settings, key) for key in SETTINGS)]
    return digest(json.dumps(shared), 8)


def _digest(model: nn.Module) -> str:
    """Digest of all tensors of a model."""

    def contents() -> Iterator[Content]:
        for name, tensor in sorted(model.state_dict().items()):
            yield name
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return digest(contents(), 64)
