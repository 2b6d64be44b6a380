"""Top-1, top-5 and KL to a teacher, in one pass over an image set."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import DataError, RunError
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.out_of_memory import in_halves
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import task_of

Progress = Callable[[int], None]
Result = TypeVar("Result")
KEPT_BYTES = 1 << 28
"""The most memory for a teacher's logits that are kept for later comparisons."""
REDUCED_BYTES = 1 << 21
"""Float64 logits that are reduced at once."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent of `images` images; `loss` is the mean cross-entropy, `kl` the mean KL(teacher || model).

    Both in nats per image; `kl` is None where no teacher was given, `kl_stderr` and `loss_stderr` are the standard
    errors of those means over images. `top5` counts the likeliest five classes, or all
    where there are fewer. `confidence` is the mean probability of the likeliest class, in percent.
    """

    images: int
    top1: float
    top5: float
    loss: float
    kl: float | None = None
    kl_stderr: float | None = None
    loss_stderr: float | None = None
    confidence: float | None = None

    @property
    def kl_interval(self) -> tuple[float, float] | None:
        """95 % interval of `kl` by its standard error, not below 0; None where no teacher was given."""
        if self.kl is None or self.kl_stderr is None:
            return None
        half = NormalDist().inv_cdf(0.975) * self.kl_stderr
        return max(self.kl - half, 0.0), self.kl + half

    @property
    def perplexity(self) -> float:
        """exp of the mean cross-entropy, the measure of a language model; `images` then counts tokens."""
        return math.exp(min(self.loss, 700.0))

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """95 % interval by the standard error of the mean cross-entropy, tokens taken as independent."""
        half = NormalDist().inv_cdf(0.975) * (self.loss_stderr or 0.0)
        return math.exp(min(self.loss - half, 700.0)), math.exp(min(self.loss + half, 700.0))

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of top-1, in percent."""
        low, high = wilson_interval(round(self.top1 * self.images / 100), self.images)
        return 100 * low, 100 * high


def check_teacher(student: ModelShape, teacher: ModelShape) -> None:
    """Raises RunError where two models cannot answer to the same images with the same classes."""
    ours, theirs = (
        f"{shape.num_classes} classes and images of {' x '.join(map(str, (*shape.img_size, shape.in_chans)))}"
        for shape in (student, teacher)
    )
    if ours != theirs:
        raise RunError(
            f"The student has {ours}, the teacher {theirs}; choose a student that was cut from this teacher, or give "
            "both the same image size (--img-size)."
        )


NEAR_CHANCE = 0.1
"""The share of the way from guessing to certainty below which a trained model's top-1 is doubted."""
LEAST_OF_CONFIDENCE = 0.5
"""The share of its own mean confidence below which a trained model's top-1 is doubted."""
CAUSES = (
    "the usual causes are labels in another order than the model's classes, another normalisation than in training, a "
    "wrong number of heads, and a head of other classes"
)


def doubt(loaded: LoadedModel, result: Evaluation) -> str:
    """A sentence where a trained model has a top-1 near chance, or less than half of its own confidence; else "".

    The end of the 95 % interval must say so, not a few images. A cut, which a plan beside it tells, is ruined honestly.
    """
    source = Path(loaded.source).expanduser()
    if not loaded.has_weights or any((place / "plan.json").is_file() for place in (source, source.parent)):
        return ""
    if not task_of(loaded.shape).has_classes:
        return ""
    chance, high = 100 / loaded.shape.num_classes, result.top1_interval[1]
    if high < chance + NEAR_CHANCE * (100 - chance):
        against = f"guessing would give {chance:.1f} %"
    elif result.confidence is not None and high < LEAST_OF_CONFIDENCE * result.confidence:
        against = f"the model is {result.confidence:.0f} % sure of its answers on average"
    else:
        return ""
    return f"Top-1 is {result.top1:.1f} %, and {against}, so it is hardly measured as it was trained; {CAUSES}."


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a binomial share, in [0, 1] (Wilson, JASA 1927)."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes of {trials} trials is no share; give 0 <= successes <= trials, trials >= 1."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def _row_slices(logits: Tensor) -> Iterator[slice]:
    """Parts of the rows of logits (N, classes) that are reduced at once."""
    rows = max(1, REDUCED_BYTES // (8 * logits.shape[-1]))
    return (slice(first, first + rows) for first in range(0, len(logits), rows))


def kl_by_image(teacher_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(q || p) of every image (N,), q of the teacher, in nats; both logits (N, classes)."""
    kl = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    for part in _row_slices(logits):
        p, q = (F.log_softmax(t[part].double(), dim=-1) for t in (logits, teacher_logits))
        kl[part] = F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    return kl


@dataclass(frozen=True)
class Outcomes:
    """A model's result on each sample (N,), on the CPU: whether the label is its likeliest class, and among its
    likeliest five; -log p of the label; the probability of its likeliest class; KL(teacher || model), where there is a
    teacher. Both in nats."""

    top1: Tensor
    top5: Tensor
    losses: Tensor
    confidence: Tensor
    kl: Tensor | None = None

    @property
    def columns(self) -> tuple[Tensor, ...]:
        return tuple(
            column for column in (self.top1, self.top5, self.losses, self.confidence, self.kl) if column is not None
        )

    def summary(self) -> Evaluation:
        """Means over samples and their standard errors."""
        n = len(self.losses)
        return Evaluation(
            images=n,
            top1=100 * self.top1.sum().item() / n,
            top5=100 * self.top5.sum().item() / n,
            loss=self.losses.mean().item(),
            kl=None if self.kl is None else self.kl.mean().item(),
            kl_stderr=None if self.kl is None or n < 2 else self.kl.std().item() / math.sqrt(n),
            loss_stderr=None if n < 2 else self.losses.std().item() / math.sqrt(n),
            confidence=100 * self.confidence.mean().item(),
        )


def outcomes_of(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Outcomes:
    """Outcomes of logits (N, classes) for labels (N,), computed in float64 some rows at a time.

    Results are written in place: small tensors kept between large ones would fragment the allocator's memory.
    """
    n, classes = logits.shape
    top1, top5 = (torch.empty(n, dtype=torch.bool, device=logits.device) for _ in range(2))
    losses, confidence = (torch.empty(n, dtype=torch.float64, device=logits.device) for _ in range(2))
    for part in _row_slices(logits):
        hits = logits[part].topk(min(5, classes), dim=-1).indices == labels[part, None]  # (rows, 5)
        top1[part], top5[part] = hits[:, 0], hits.any(-1)
        losses[part] = F.cross_entropy(logits[part].double(), labels[part], reduction="none")
        confidence[part] = F.softmax(logits[part].double(), dim=-1).amax(-1)
    kl = [] if teacher_logits is None else [kl_by_image(teacher_logits, logits)]
    return joined([(top1, top5, losses, confidence, *kl)])


def joined(parts: Iterable[Sequence[Tensor]]) -> Outcomes:
    """The columns of consecutive samples behind one another."""
    return Outcomes(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes) in float32; every token of a text is a row."""
    logits: Tensor = model(x).float().flatten(0, -2)
    return logits.cpu() if logits.device.type == "mps" else logits  # a device without float64


def _run(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    compute: Callable[[Tensor, Tensor, int], Result],
    progress: Progress | None,
) -> list[Result]:
    """`compute(images, labels, samples before)` for every batch, or for its halves where memory runs out.

    The models are in eval mode meanwhile, and get their own mode back.
    """
    device = next(models[0].parameters()).device
    modes = [model.training for model in models]
    results: list[Result] = []
    images = samples = 0

    def part(rows: range) -> Result:
        inside = slice(rows.start, rows.stop)
        return compute(x[inside], y[inside].flatten(), samples + y[: rows.start].numel())

    try:
        for model in models:
            model.eval()
        for x, y in batches:
            x = x.to(device, non_blocking=True)
            results += (result for _, result in in_halves(part, range(len(x))))
            images, samples = images + len(x), samples + y.numel()
            if progress is not None:
                progress(images)
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)
    if not results:
        raise DataError("There is no image to evaluate on; choose a data set whose evaluation part is not empty.")
    return results


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) in float32 and labels (N,) of every batch, on the CPU; the model's mode is restored.

    `progress` receives the number of images done; raise `Cancelled` in it to stop.
    """
    parts = _run([model], batches, lambda x, y, before: (_logits(model, x).cpu(), y.cpu()), progress)
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, labels.long()


@torch.no_grad()
def sample_outcomes(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    teacher: nn.Module | None = None,
    teacher_logits: Tensor | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Outcomes on batches of images (B, C, H, W) and labels (B,); logits of one batch at most are in memory.

    KL is to `teacher_logits` (N, classes) of the same batches, or else to `teacher`, which is run on each batch.
    """
    rerun = [teacher] if teacher is not None and teacher_logits is None else []

    def reduce(x: Tensor, y: Tensor, before: int) -> tuple[Tensor, ...]:
        logits = _logits(model, x)
        reference = None if teacher_logits is None else teacher_logits[before : before + len(logits)].to(logits.device)
        for again in rerun:
            reference = _logits(again, x)
        return outcomes_of(logits, y.to(logits.device), reference).columns

    return joined(_run([model, *rerun], batches, reduce, progress))


@dataclass(frozen=True)
class TeacherPass:
    """A teacher's outcomes on some batches, and its logits (N, classes) where they are small enough to keep."""

    outcomes: Outcomes
    logits: Tensor | None


@torch.no_grad()
def run_teacher(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    most_bytes: int = KEPT_BYTES,
    progress: Progress | None = None,
) -> TeacherPass:
    """Run a teacher once on batches with which students are compared later."""
    kept: list[Tensor] = []
    size = 0

    def reduce(x: Tensor, y: Tensor, before: int) -> tuple[Tensor, ...]:
        nonlocal size
        logits = _logits(model, x)
        columns = outcomes_of(logits, y.to(logits.device)).columns
        size += logits.nbytes
        if size <= most_bytes:
            kept.append(logits.cpu())
        else:
            kept.clear()
        return columns

    outcomes = joined(_run([model], batches, reduce, progress))
    return TeacherPass(outcomes, torch.cat(kept) if kept else None)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    teacher: nn.Module | None = None,
    teacher_logits: Tensor | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Means of `sample_outcomes`, with the same arguments."""
    return sample_outcomes(model, batches, teacher=teacher, teacher_logits=teacher_logits, progress=progress).summary()
