"""The two records of a run folder: the spec, what is to be done, and the state, how far it is. Imports no torch."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from upvit_core.errors import RunError, first_fault
from upvit_core.training.settings import DistillSettings

StateName = Literal["queued", "running", "paused", "done", "failed", "cancelled", "interrupted"]
ACTIVE: tuple[StateName, ...] = ("queued", "running")
RESUMABLE: tuple[StateName, ...] = ("paused", "interrupted", "failed", "cancelled")
LOWEST, HIGHEST = -2, 2  # priority
LATEST = 4_102_444_800 * 10**9  # `created`: the year 2100; what claims to be younger is read as this
BRIEF = ("version", "basis", "requested")  # of a plan, in lists: without the channels

Text = Annotated[str, Field(max_length=4096)]
Short = Annotated[str, Field(max_length=200)]
SlurmWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,-]{1,100}$")]


def is_local(source: str | None) -> bool:
    """True if a source is a file or folder of this machine, not a name that means the same elsewhere."""
    return source not in (None, "", "demo") and os.path.exists(str(source))


def absolute(source: str | None) -> str | None:
    """A local source as an absolute path, as specs hold it; a name as it is."""
    return os.path.abspath(source) if source and is_local(source) else source


class SlurmSettings(BaseModel):
    """The resources of a Slurm job; None leaves one to the cluster.

    Memory in GB a node, time in minutes. A run that needs longer is warned `warning_seconds` before, saves, and is
    queued again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    cpus_per_process: Annotated[int | None, Field(ge=1, le=1024)] = None
    mem_gb: Annotated[float | None, Field(gt=0, le=1e5, allow_inf_nan=False)] = None
    minutes: Annotated[int, Field(ge=1, le=60 * 24 * 365)] = 24 * 60
    warning_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None


class RunSpec(BaseModel):
    """One run to be done, written once. Its `kind` is `distill`; `elastic`, all sizes of one student at once; or
    `finetune`, other data and no teacher.

    The student of `distill` is a folder, or a plan that the worker cuts the teacher by; of `elastic` an elastic folder,
    or none where one is to be made of the teacher; of `finetune`, anything that `load_model` takes: it gets a new head
    where its classes are not those of `data` (or always, with `head`), and reads images of `in_chans` channels where
    given. `img_size`: pixels that teacher and student read, where given.

    `plan` is the content of a plan.json; `repair` asks for least-squares repair after the cut (`calibration_images` of
    the training set are used by it, and by a plan that keeps directions). `teacher` and `data` are what `load_model`
    and `open_images` take. `device` is `auto`, `cpu` or `cuda:N`; runs that name one device wait for each other.
    `processes` train together on every machine, on the CPU or on a GPU each, and share the batch; the result does not
    depend on them but for the order of sums. `slurm` is what executor slurm asks for. `group` joins the runs of a
    sweep, `owner` is whoever started it (owners take turns on a device), `priority` goes before that
    (`RunStore.prioritise` changes it later), `created` is in nanoseconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["distill", "finetune", "elastic"] = "distill"
    name: Short
    teacher: Text = ""
    student: Text | None = None
    plan: dict[str, Any] | None = None
    repair: bool = False
    calibration_images: Annotated[int, Field(ge=1)] = 2000
    head: Literal["auto", "new", "keep"] = "auto"
    in_chans: Literal[1, 3] | None = None
    img_size: Annotated[int, Field(ge=1, le=16384)] | None = None
    data: Text
    data_root: Text | None = None
    epochs: int = Field(ge=1, le=100_000)
    settings: DistillSettings = DistillSettings()
    group: Short = ""
    owner: Short = ""
    priority: Annotated[int, Field(ge=LOWEST, le=HIGHEST)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")] = "auto"
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    executor: Literal["local", "slurm"] = "local"
    slurm: SlurmSettings | None = None
    created: Annotated[int, Field(ge=0), AfterValidator(lambda created: min(created, LATEST))] = 0

    @model_validator(mode="after")
    def _one_student(self) -> RunSpec:
        if self.kind == "finetune":
            if self.student is None or self.plan is not None or self.teacher:
                raise ValueError("fine-tuning takes a student, and neither a teacher nor a plan")
            return self
        if not self.teacher:
            raise ValueError("distillation needs a teacher")
        if self.kind == "elastic":
            if self.plan is not None or self.settings.from_scratch or self.settings.feature_weight:
                raise ValueError("an elastic run takes no plan, no fresh weights and no feature_weight")
            return self
        if (self.student is None) == (self.plan is None):
            raise ValueError(
                "give either student (a folder) or plan (what to cut the teacher by), not both and not neither"
            )
        return self

    def brief(self) -> RunSpec:
        """For lists: the plan holds what was asked for and its basis, and no channels."""
        if self.plan is None:
            return self
        return self.model_copy(update={"plan": {key: self.plan[key] for key in BRIEF if key in self.plan}})

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "the spec") -> RunSpec:
        """Raises RunError with the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            if any(fault["loc"] == ("version",) for fault in error.errors()):
                raise RunError(
                    f"{name} was written by another version of this program, whose records this one does not read "
                    f"({first_fault(error)}); open the run there, or start it again here."
                ) from error
            raise RunError(f"{name} is not a valid run: {first_fault(error)}; start the run again.") from error
        except RecursionError as error:
            raise RunError(f"{name} is nested too deeply to be a run; start the run again.") from error


class RunState(BaseModel):
    """The state of a run. Steps and epochs are done ones, seconds are of training alone. `error` is one sentence: what
    went wrong; `stopped_by` is who paused or cancelled the run (`reason.reason_of` words both); `note` is worth knowing
    though the run goes on. `busy_seconds` is how long it had a device, `devices` are those that it has or had last.

    `pid`, `started` and `boot` name the worker process: its start in clock ticks after the machine's boot, and that
    boot, so that a reused pid is not mistaken for it; `host` is its machine, `job` its Slurm job, `place` what Slurm
    says of it now, or where else it runs. `position` counts from 1 in the queue of its device and is filled on
    reading; `turn` is that of its latest turn on the device, counted over all runs. top1 in percent of the latest
    evaluation, with its images, and a language model's perplexity; images_per_s as measured in this run.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: StateName
    pid: int | None = None
    started: int | None = None
    boot: str = ""
    host: str = ""
    job: str = ""
    place: str = ""
    attempt: int = 0
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    epochs: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    devices: tuple[str, ...] = ()
    seconds_left: float | None = None
    top1: float | None = None
    top1_images: int | None = None
    perplexity: float | None = None
    teacher_top1: float | None = None
    images_per_s: float | None = None
    error: str = ""
    stopped_by: str = ""
    note: str = ""
    position: int | None = None
    turn: int = 0

    @property
    def progress(self) -> float:
        """Share of the steps done, in [0, 1]."""
        if self.state == "done":
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE
