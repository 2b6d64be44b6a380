"""How accurate a plan's student is before any training: top-1 and KL on a held-out subset, cached by plan."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from upvit_core.cut import cut
from upvit_core.data import ImageSet, proxy_indices
from upvit_core.errors import PlanError
from upvit_core.evaluation import predict, score_logits
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.planning.plan import PruningPlan

KEPT = 256
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Preview:
    """Right after surgery, on `images` held-out images: top-1 in percent with its 95 % Wilson interval, KL in nats.

    kl is the mean KL(teacher || student); teacher_top1 is the teacher's on the same images.
    """

    top1: float
    low: float
    high: float
    kl: float
    images: int
    teacher_top1: float
    seconds: float


class Previewer:
    """Previews plans of one model on one fixed subset; safe to call from several threads.

    The images, normalised, stay in memory, and so do the teacher's logits and the last KEPT previews.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        images: ImageSet,
        *,
        count: int = 500,
        seed: int = 0,
        batch_size: int = 100,
        device: torch.device | str = "cpu",
    ):
        """`images` is the evaluation split; at most `count` of it are drawn by `seed`."""
        self._loaded = loaded
        chosen = proxy_indices(images, min(count, len(images)), seed)
        self._batches: list[tuple[Tensor, Tensor]] = list(images.batches(batch_size, indices=chosen, device=device))
        self._teacher, self._labels = predict(loaded.model, self._batches)
        self._teacher_top1 = score_logits(self._teacher, self._labels).top1
        self._known: OrderedDict[str, Preview] = OrderedDict()
        self._lock = Lock()

    def __call__(
        self, plan: PruningPlan, *, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Preview:
        """Cut by the plan and evaluate. `progress` receives images done and in all; raise `Cancelled` in it to stop.

        Raises PlanError for plans of another model, and for plans of directions, whose students need images to fit.
        """
        known = self.known(plan)
        if known is not None:
            return known
        if plan.basis != "channels":
            raise PlanError("A preview cuts channels; a plan of directions needs images to find them, so cut it first.")
        start = time.perf_counter()
        student = cut(self._loaded, plan)
        total = len(self._labels)
        logits, labels = predict(student, self._batches, progress=lambda done: progress(done, total))
        result = score_logits(logits, labels, self._teacher)
        low, high = result.top1_interval
        assert result.kl is not None
        preview = Preview(result.top1, low, high, result.kl, total, self._teacher_top1, time.perf_counter() - start)
        with self._lock:
            self._known[plan.digest] = preview
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return preview

    def known(self, plan: PruningPlan) -> Preview | None:
        """The preview of a plan, where it has been made."""
        with self._lock:
            return self._known.get(plan.digest)


def preview(
    loaded: LoadedModel, plans: Sequence[PruningPlan], images: ImageSet, *, count: int = 500, seed: int = 0
) -> list[Preview]:
    """Previews of several plans on the same images."""
    previewer = Previewer(loaded, images, count=count, seed=seed)
    return [previewer(plan) for plan in plans]
