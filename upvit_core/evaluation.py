"""Top-1, top-5 and KL to a teacher, in one pass over an image set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import DataError
from upvit_core.out_of_memory import is_out_of_memory

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent of `images` images; `loss` is the mean cross-entropy, `kl` the mean KL(teacher || model).

    Both in nats per image; `kl` is None where no teacher was given, `kl_stderr` and `loss_stderr` are the standard
    errors of those means over images. `top5` counts the likeliest five classes, or all
    where there are fewer.
    """

    images: int
    top1: float
    top5: float
    loss: float
    kl: float | None = None
    kl_stderr: float | None = None
    loss_stderr: float | None = None

    @property
    def kl_interval(self) -> tuple[float, float] | None:
        """95 % interval of `kl` by its standard error, not below 0; None where no teacher was given."""
        if self.kl is None or self.kl_stderr is None:
            return None
        half = NormalDist().inv_cdf(0.975) * self.kl_stderr
        return max(self.kl - half, 0.0), self.kl + half

    @property
    def perplexity(self) -> float:
        """exp of the mean cross-entropy: what a language model is judged by; `images` then counts tokens."""
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


def kl_by_image(teacher_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(q || p) of every image (N,), q of the teacher, in nats; both logits (N, classes)."""
    p, q = (F.log_softmax(t.double(), dim=-1) for t in (logits, teacher_logits))
    return F.kl_div(p, q, reduction="none", log_target=True).sum(-1)


def mean_kl(teacher_logits: Tensor, logits: Tensor) -> float:
    """Mean over images of KL(q || p), q of the teacher, in nats; both logits (N, classes)."""
    return kl_by_image(teacher_logits, logits).mean().item()


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """In halves where memory runs out."""
    try:
        return model(x).float().cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(x) < 2:
            raise
    if x.is_cuda:
        torch.cuda.empty_cache()
    return torch.cat([_logits(model, half) for half in x.chunk(2)])


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) in float32 and labels (N,) of every batch, on the CPU; the model's mode is restored.

    `progress` receives the number of images done; raise `Cancelled` in it to stop.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits, labels, done = [], [], 0
    try:
        for x, y in batches:
            out = _logits(model, x.to(device, non_blocking=True))
            logits.append(out.flatten(0, -2))  # of a language model, every token is a row
            labels.append(y.cpu().flatten())
            done += len(x)
            if progress is not None:
                progress(done)
    finally:
        model.train(was_training)
    if not logits:
        raise DataError("There is no image to evaluate on; choose a data set whose evaluation part is not empty.")
    return torch.cat(logits), torch.cat(labels).long()


def score_logits(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Evaluation:
    """Evaluation of logits (N, classes) against labels (N,), and against the teacher's logits of the same images."""
    n, classes = logits.shape
    likeliest = logits.topk(min(5, classes), dim=-1).indices  # (N, 5)
    hits = likeliest == labels[:, None]
    kl = None if teacher_logits is None else kl_by_image(teacher_logits, logits)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")  # (N,)
    return Evaluation(
        images=n,
        top1=100 * hits[:, 0].sum().item() / n,
        top5=100 * hits.any(-1).sum().item() / n,
        loss=losses.mean().item(),
        kl=None if kl is None else kl.mean().item(),
        kl_stderr=None if kl is None or n < 2 else kl.std().item() / math.sqrt(n),
        loss_stderr=None if n < 2 else losses.std().item() / math.sqrt(n),
    )


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    teacher_logits: Tensor | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on batches of images (B, C, H, W) and labels (B,).

    `teacher_logits` (N, classes): what `predict` gave for the teacher on the same batches in the same order.
    """
    logits, labels = predict(model, batches, progress=progress)
    return score_logits(logits, labels, teacher_logits)
