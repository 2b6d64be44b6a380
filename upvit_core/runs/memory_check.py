"""An estimate, before a run starts, of whether it fits its device; what else uses the device may change."""

import json
from dataclasses import dataclass
from pathlib import Path

from upvit_core.errors import UPViTError
from upvit_core.paths import DEMO_FOLDER
from upvit_core.profiling.memory import TrainingMemory, estimate_training
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape
from upvit_core.records.source import Source
from upvit_core.records.task import task_of
from upvit_core.runs.devices import Device, device_named
from upvit_core.runs.spec import RunSpec
from upvit_core.training.settings import DistillSettings

GPU_OVERHEAD = 700 << 20  # CUDA's context and its libraries' workspaces


@dataclass(frozen=True)
class MemoryCheck:
    """Bytes that one step needs (`needed`) on a device, and the `parts` in which its batch is trained.

    `parts` is None where not even one item fits. An `item` of the batch is an image, or a block of text.
    """

    memory: TrainingMemory
    batch: int
    needed: int
    device: Device
    parts: int | None
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
        return (
            f"A batch of {self.batch} needs {gigabytes(self.needed)}, and {where}: it will be trained "
            f"{-(-self.batch // self.parts)} {self.items} at a time, gradients added up."
        )


def gigabytes(amount: int) -> str:
    return f"{amount / 2**30:.1f} GB" if amount >= 2**29 else f"{amount / 2**20:.0f} MB"


def check_memory(spec: RunSpec, device: Device | None = None) -> MemoryCheck | None:
    """The check of a run; None where its device is not here, or shapes are not known without reading weights."""
    device = device_named(spec.device) if device is None else device
    shapes = shapes_of(spec)
    return None if shapes is None or device is None else check_memory_of_shapes(*shapes, spec.settings, device)


def check_memory_of_shapes(
    teacher: ModelShape, student: ModelShape, settings: DistillSettings, device: Device
) -> MemoryCheck:
    """The check of one step of distillation with these settings."""
    on_gpu = device.name != "cpu"
    low = settings.amp in ("bf16", "fp16") or (settings.amp == "auto" and on_gpu)
    memory = estimate_training(
        teacher, student, dtype="bfloat16" if low else "float32", averaged=settings.ema_decay > 0
    )
    overhead = GPU_OVERHEAD if on_gpu else 0
    needed = memory.total(settings.batch_size) + overhead
    parts = memory.parts_for(device.free - overhead, settings.batch_size)
    task = task_of(student)
    return MemoryCheck(memory, settings.batch_size, needed, device, parts, task.batch_item, task.batch_items)


def shapes_of(spec: RunSpec) -> tuple[ModelShape, ModelShape] | None:
    """Shapes of teacher and student, from the plan or from their folders."""
    try:
        if spec.plan is not None:
            plan = PruningPlan.from_json(json.dumps(spec.plan))
            return plan.shape_before, plan.shape_after
        teacher = DEMO_FOLDER if spec.teacher == "demo" else Path(Source.parse(spec.teacher).path)
        return _folder_shape(teacher), _folder_shape(Path(str(spec.student)))
    except (UPViTError, OSError, ValueError, KeyError, TypeError):
        return None


def _folder_shape(folder: Path) -> ModelShape:
    return ModelShape.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["upvit_shape"])
