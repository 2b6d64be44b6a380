"""An estimate, before a run starts, of whether it fits its device; what else uses the device may change."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_core.errors import UPViTError
from upvit_core.paths import DEMO_FOLDER
from upvit_core.profiling.memory import TrainingMemory, estimate_training
from upvit_core.ranks import local_process_count, process_count
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape
from upvit_core.records.source import Source
from upvit_core.records.task import task_of
from upvit_core.runs.devices import Device, devices_for
from upvit_core.runs.spec import RunSpec
from upvit_core.training.settings import DistillSettings

GPU_OVERHEAD = 700 << 20  # CUDA's context and its libraries' workspaces


@dataclass(frozen=True)
class MemoryCheck:
    """Bytes that one step needs (`needed`) on a device, and the `parts` in which a process trains its `batch`.

    `parts` is None where not even one item fits. An `item` of the batch is an image, or a block of text.
    """

    memory: TrainingMemory
    batch: int
    needed: int
    device: Device
    parts: int | None
    processes: int = 1
    item: str = "image"
    items: str = "images"

    @property
    def sentence(self) -> str:
        """A warning; empty where the run fits as it is."""
        if self.parts == 1:
            return ""
        where = f"{self.device.label} has {gigabytes(self.device.free)} free (estimated)"
        if self.parts is None:
            least = self.needed - self.memory.total(self.batch) + self.memory.total(1)
            return f"Even one {self.item} at a time needs {gigabytes(least)}, and {where}; choose another device."
        each = f" for each of {self.processes} processes" if self.processes > 1 else ""
        return (
            f"A batch of {self.batch}{each} needs {gigabytes(self.needed)}, and {where}: it will be trained "
            f"{-(-self.batch // self.parts)} {self.items} at a time, gradients added up."
        )


def gigabytes(amount: int) -> str:
    return f"{amount / 2**30:.1f} GB" if amount >= 2**29 else f"{amount / 2**20:.0f} MB"


def check_memory(spec: RunSpec, devices: Sequence[Device] | None = None) -> MemoryCheck | None:
    """The check of a run on the devices that it has, or would get (None); None where they are not here, or shapes are
    not known without reading weights."""
    processes = max(process_count(), spec.processes)
    devices = devices_for(spec.device, processes) if devices is None else devices
    shapes = shapes_of(spec)
    return check_memory_of_shapes(*shapes, spec.settings, devices, processes) if shapes and devices else None


def check_memory_of_shapes(
    teacher: ModelShape, student: ModelShape, settings: DistillSettings, devices: Sequence[Device], processes: int = 1
) -> MemoryCheck:
    """The check of one step of distillation with these settings, by the device with the least memory free.

    Each process holds the models and its share of the batch: on a GPU of its own, or on the CPU beside the others.
    """
    device = min(devices, key=lambda found: found.free)
    on_gpu = device.name != "cpu"
    low = settings.amp in ("bf16", "fp16") or (settings.amp == "auto" and on_gpu)
    memory = estimate_training(
        teacher, student, dtype="bfloat16" if low else "float32", averaged=settings.ema_decay > 0
    )
    if not on_gpu:
        here = min(processes, local_process_count()) if process_count() > 1 else processes
        memory = TrainingMemory(here * memory.fixed, here * memory.per_image)
    overhead = GPU_OVERHEAD if on_gpu else 0
    share = -(-settings.batch_size // processes)
    needed = memory.total(share) + overhead
    parts = memory.parts_for(device.free - overhead, share)
    task = task_of(student)
    return MemoryCheck(memory, share, needed, device, parts, processes, task.batch_item, task.batch_items)


def shapes_of(spec: RunSpec) -> tuple[ModelShape, ModelShape] | None:
    """Shapes of teacher and student, from the plan or from their folders."""
    try:
        if spec.plan is not None:
            plan = PruningPlan.from_json(json.dumps(spec.plan))
            return plan.shape_before, plan.shape_after
        teacher = DEMO_FOLDER if spec.teacher == "demo" else Path(Source.parse(spec.teacher).path)
        student = teacher if spec.student is None else Path(spec.student)
        return _folder_shape(teacher), _folder_shape(student)
    except (UPViTError, OSError, ValueError, KeyError, TypeError):
        return None


def _folder_shape(folder: Path) -> ModelShape:
    return ModelShape.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["upvit_shape"])
