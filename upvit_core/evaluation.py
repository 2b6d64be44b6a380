"""Top-1, top-5 and KL to a teacher, in one pass over an image set.

`ClassReadout` reads logits; `FeatureReadout` judges features by k-NN, by the cosine to the teacher's, and by the KL
of Gaussians around them, with the covariance of the teacher's features on the same images. `readout_of` gives the one
that a model has.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.data import ImageSet
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.neighbours import Bank, K, bank_of, votes
from upvit_core.models.output import Gaussian
from upvit_core.models.predict import Batches, Progress, outputs_of, predict, run_batches
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import task_of
from upvit_core.units import wilson_interval

Tick = Progress | None
KEPT_BYTES = 1 << 28
"""The most memory for a teacher's logits that are kept for later comparisons."""
REDUCED_BYTES = 1 << 21
"""Float64 logits that are reduced at once."""


@dataclass(frozen=True)
class Evaluation:
    """Means over `images` images, or tokens of a text.

    `top1` and `top5` are in percent; `top5` counts the likeliest five classes, or all where there are fewer. `loss` is
    the mean cross-entropy and `kl` the mean KL(teacher || model), both in nats, with the standard errors of these means
    over images; `kl` is None without a teacher. `confidence`: mean probability of the likeliest class, in percent.
    Of features, top-1 is that of k-NN (NaN without labels), and `cosine` the mean to the teacher's.
    """

    images: int
    top1: float
    top5: float
    loss: float
    kl: float | None = None
    kl_stderr: float | None = None
    loss_stderr: float | None = None
    confidence: float | None = None
    cosine: float | None = None

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
        """95 % Wilson interval of top-1, in percent; NaN where no label is known."""
        if math.isnan(self.top1):
            return math.nan, math.nan
        low, high = wilson_interval(round(self.top1 * self.images / 100), self.images)
        return 100 * low, 100 * high


NEAR_CHANCE = 0.1
LEAST_OF_CONFIDENCE = 0.5
"""Top-1 is doubted below these shares of the way from guessing to certainty, and of the model's own confidence."""
CAUSES = (
    "the usual causes are labels in another order than the model's classes, another normalisation than in training, a "
    "wrong number of heads, and a head of other classes"
)


def doubt(loaded: LoadedModel, result: Evaluation) -> str:
    """A sentence where a trained model has a top-1 near chance, or less than half of its own confidence; else "".

    The upper end of the 95 % interval decides, so that a few images raise no doubt. A pruned model, recognised by the
    plan beside it, raises none either: its top-1 may well be that low.
    """
    source = Path(loaded.source).expanduser()
    cut = any((place / "plan.json").is_file() for place in (source, source.parent))
    if cut or not loaded.has_weights or loaded.shape.features or not task_of(loaded.shape).has_classes:
        return ""
    chance, high = 100 / loaded.shape.num_classes, result.top1_interval[1]
    if high < chance + NEAR_CHANCE * (100 - chance):
        against = f"guessing would give {chance:.1f} %"
    elif result.confidence is not None and high < LEAST_OF_CONFIDENCE * result.confidence:
        against = f"the model is {result.confidence:.0f} % sure of its answers on average"
    else:
        return ""
    return f"Top-1 is {result.top1:.1f} %, and {against}, so it is hardly measured as it was trained; {CAUSES}."


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
    """A model's results on each sample, columns (N,) on the CPU.

    top1, top5: whether the label is the likeliest class, or among the likeliest five. losses: -log p of the label in
    nats. confidence: probability of the likeliest class. answers, labels: the likeliest class and the right class.
    kl: KL(teacher || model) in nats, None without a teacher. cosine: of features, to the teacher's.
    """

    top1: Tensor
    top5: Tensor
    losses: Tensor
    confidence: Tensor
    answers: Tensor
    labels: Tensor
    kl: Tensor | None = None
    cosine: Tensor | None = None

    @property
    def columns(self) -> tuple[Tensor, ...]:
        every = (getattr(self, column.name) for column in fields(self))
        return tuple(column for column in every if column is not None)

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
            cosine=None if self.cosine is None else self.cosine.mean().item(),
        )


def outcomes_of(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Outcomes:
    """Outcomes of logits (N, classes) for labels (N,), computed in float64 some rows at a time.

    Results are written in place: small tensors kept between large ones would fragment the allocator's memory.
    """
    n, classes = logits.shape
    top1, top5 = (torch.empty(n, dtype=torch.bool, device=logits.device) for _ in range(2))
    answers = torch.empty(n, dtype=torch.long, device=logits.device)
    losses, confidence = (torch.empty(n, dtype=torch.float64, device=logits.device) for _ in range(2))
    for part in _row_slices(logits):
        likeliest = logits[part].topk(min(5, classes), dim=-1).indices  # (rows, 5)
        hits = likeliest == labels[part, None]
        answers[part], top1[part], top5[part] = likeliest[:, 0], hits[:, 0], hits.any(-1)
        losses[part] = F.cross_entropy(logits[part].double(), labels[part], reduction="none")
        confidence[part] = F.softmax(logits[part].double(), dim=-1).amax(-1)
    kl = [] if teacher_logits is None else [kl_by_image(teacher_logits, logits)]
    return joined([(top1, top5, losses, confidence, answers, labels.long(), *kl)])


def joined(parts: Iterable[Sequence[Tensor]]) -> Outcomes:
    """The columns of consecutive samples behind one another."""
    return Outcomes(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class TeacherPass:
    """A teacher's outcomes on some batches, and its outputs (N, outputs) where they are small enough to keep."""

    outcomes: Outcomes
    logits: Tensor | None


class Readout(Protocol):
    """The way from a model's outputs to its outcomes.

    `is_shared`: samples may be divided among processes. `told`: how top-1 is found, where not by the likeliest class.
    """

    is_shared: bool

    @property
    def told(self) -> str: ...

    def voter(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """A function from outputs (N, outputs) to probabilities of classes (N, classes), on the CPU."""

    def kl(self, teacher_outputs: Tensor, outputs: Tensor) -> Tensor:
        """KL(teacher || changed) of every sample (N,) in nats, from the outputs of both (N, outputs)."""

    def outcomes(
        self,
        model: nn.Module,
        batches: Batches,
        teacher: nn.Module | None,
        teacher_logits: Tensor | None,
        progress: Tick,
    ) -> Outcomes: ...

    def teacher_pass(self, model: nn.Module, batches: Batches, most_bytes: int, progress: Tick) -> TeacherPass: ...


class ClassReadout:
    """Classes, or next tokens, from logits; those of one batch at most are in memory."""

    is_shared, told = True, ""

    def voter(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda outputs: outputs.float().softmax(-1).cpu()

    def kl(self, teacher_outputs: Tensor, outputs: Tensor) -> Tensor:
        return kl_by_image(teacher_outputs, outputs)

    def outcomes(
        self,
        model: nn.Module,
        batches: Batches,
        teacher: nn.Module | None,
        teacher_logits: Tensor | None,
        progress: Tick,
    ) -> Outcomes:
        rerun = [teacher] if teacher is not None and teacher_logits is None else []

        def reduce(x: Tensor, y: Tensor, before: int) -> tuple[Tensor, ...]:
            logits = outputs_of(model, x)
            known = None if teacher_logits is None else teacher_logits[before : before + len(logits)].to(logits.device)
            for again in rerun:
                known = outputs_of(again, x)
            return outcomes_of(logits, y.to(logits.device), known).columns

        return joined(run_batches([model, *rerun], batches, reduce, progress))

    def teacher_pass(self, model: nn.Module, batches: Batches, most_bytes: int, progress: Tick) -> TeacherPass:
        kept: list[Tensor] = []
        size = 0

        def reduce(x: Tensor, y: Tensor, before: int) -> tuple[Tensor, ...]:
            nonlocal size
            logits = outputs_of(model, x)
            columns = outcomes_of(logits, y.to(logits.device)).columns
            size += logits.nbytes
            if size <= most_bytes:
                kept.append(logits.cpu())
            else:
                kept.clear()
            return columns

        outcomes = joined(run_batches([model], batches, reduce, progress))
        return TeacherPass(outcomes, torch.cat(kept) if kept else None)


CLASSES = ClassReadout()


@dataclass(frozen=True)
class FeatureReadout:
    """Features, all of which are kept: k-NN by the bank (None: no labels are known), cosine and KL to a teacher's."""

    bank: Bank | None
    is_shared = False  # the covariance is that of all samples

    @property
    def told(self) -> str:
        if self.bank is None:
            return "Without classifier and labels there is no top-1: cosine and KL to the original tell."
        among = f"k-NN among {len(self.bank.indices):,} training images (k = {K}, cosine of features)"
        return f"Without a classifier, top-1 is by {among}."

    def outcomes(
        self,
        model: nn.Module,
        batches: Batches,
        teacher: nn.Module | None,
        teacher_logits: Tensor | None,
        progress: Tick,
    ) -> Outcomes:
        models = [model] if teacher is None or teacher_logits is not None else [model, teacher]

        def compute(x: Tensor, y: Tensor, before: int) -> tuple[Tensor, ...]:
            return (y.cpu().long(), *(outputs_of(each, x).cpu() for each in models))

        labels, *outputs = (
            torch.cat(column) for column in zip(*run_batches(models, batches, compute, progress), strict=True)
        )
        features, *reference = outputs if teacher_logits is None else (*outputs, teacher_logits.cpu())
        right = self._by_neighbours(model, features, labels)
        if not reference:
            return right
        cosine = F.cosine_similarity(features.double(), reference[0].double(), dim=-1)
        return replace(right, kl=self.kl(reference[0], features), cosine=cosine)

    def teacher_pass(self, model: nn.Module, batches: Batches, most_bytes: int, progress: Tick) -> TeacherPass:
        features, labels = predict(model, batches, progress=progress)
        return TeacherPass(self._by_neighbours(model, features, labels), features)

    def kl(self, teacher_outputs: Tensor, outputs: Tensor) -> Tensor:
        output = Gaussian.of(teacher_outputs)
        return output.kl(output.reference(teacher_outputs), outputs)

    def voter(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """By the neighbours among the model's own features of the bank; one column of NaN without a bank."""
        if self.bank is None:
            return lambda features: torch.full((len(features), 1), torch.nan, dtype=torch.float64)
        images, device, count = self.bank.images, next(model.parameters()).device, len(self.bank.names)
        known, labels = predict(model, images.batches(self.bank.batch_size, indices=self.bank.indices, device=device))
        labels = self.bank.classes[labels]
        return lambda features: votes(known[labels >= 0], labels[labels >= 0], features.cpu(), count)

    def _by_neighbours(self, model: nn.Module, features: Tensor, labels: Tensor) -> Outcomes:
        shares = self.voter(model)(features)
        if self.bank is None:
            return Outcomes(*[shares[:, 0]] * 6)
        likeliest = shares.topk(min(5, shares.shape[1]), dim=-1).indices
        hits = likeliest == labels[:, None]
        own = shares.gather(1, labels[:, None])[:, 0]
        return Outcomes(hits[:, 0], hits.any(-1), -own.clamp_min(1e-6).log(), shares.amax(-1), likeliest[:, 0], labels)


def readout_of(shape: ModelShape, train: ImageSet | None, test: ImageSet | None = None) -> Readout:
    """The readout of a model on the images `test`, whose k-NN has its bank from labelled training images."""
    return (
        CLASSES
        if not shape.features
        else FeatureReadout(None if train is None else bank_of(train, test, shape.batch_size(100, large=16)))
    )


@torch.no_grad()
def sample_outcomes(
    model: nn.Module,
    batches: Batches,
    *,
    teacher: nn.Module | None = None,
    teacher_logits: Tensor | None = None,
    progress: Tick = None,
    readout: Readout = CLASSES,
) -> Outcomes:
    """Outcomes on batches of images (B, C, H, W) and labels (B,).

    KL is to `teacher_logits` (N, outputs) of the same batches, else to `teacher`, which is run on them.
    """
    return readout.outcomes(model, batches, teacher, teacher_logits, progress)


@torch.no_grad()
def run_teacher(
    model: nn.Module,
    batches: Batches,
    *,
    most_bytes: int = KEPT_BYTES,
    progress: Tick = None,
    readout: Readout = CLASSES,
) -> TeacherPass:
    """Run a teacher once on batches with which students are compared later."""
    return readout.teacher_pass(model, batches, most_bytes, progress)


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    teacher: nn.Module | None = None,
    teacher_logits: Tensor | None = None,
    progress: Tick = None,
    readout: Readout = CLASSES,
) -> Evaluation:
    """Means of `sample_outcomes`, with the same arguments."""
    outcomes = sample_outcomes(
        model, batches, teacher=teacher, teacher_logits=teacher_logits, progress=progress, readout=readout
    )
    return outcomes.summary()
