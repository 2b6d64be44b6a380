"""Cuts of one model, each measured on the same held-out inputs against outputs of the whole model computed once.

What a cut needs of the model is gathered once as well: the second moments from which directions are found, and the
images that repair is fitted to. Cutting and evaluating are those of `pruning.prune` and `evaluation`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from upvit_core.data import ImageSet, ProxySet, draw_proxy
from upvit_core.errors import MapError
from upvit_core.evaluation import Evaluation, Readout, TeacherPass, evaluate, readout_of, run_teacher
from upvit_core.importance.criterion import Report, silent
from upvit_core.mapping.points import Worth
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.pruning.basis import ProxyStatistics, collect_statistics
from upvit_core.pruning.prune import cut
from upvit_core.records.basis import Basis
from upvit_core.records.map import Map, Measured, MeasuredCut, Origin
from upvit_core.records.plan import Fitted, PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import Task, task_of

HELD_OUT, FITTED_TO = 1000, 500
"""Held-out inputs on which a cut is measured, and training inputs that repair or directions are fitted to."""
MOST_BLOCKS = 400
"""Of a text, blocks in place of images: every token has an answer of its own."""
KEPT_BYTES = 1 << 30
"""The most that held-out inputs may take in memory; more are read again for every cut."""


@dataclass(frozen=True)
class CutMeter:
    """Measures cuts of a model by its `scores`, on held-out inputs of `test`.

    repair: fit layers by least squares after each cut, to inputs of `train`; directions are found on the same ones.
    `report` receives the progress of what is gathered once.
    """

    loaded: LoadedModel
    scores: ImportanceScores
    test: ImageSet
    train: ImageSet | None = None
    basis: Basis = Basis.CHANNELS
    repair: bool = False
    held_out: int = HELD_OUT
    fitted_to: int = FITTED_TO
    report: Report = silent

    def __post_init__(self) -> None:
        if self.scores.model_digest and self.scores.model_digest != self.loaded.digest:
            raise MapError(f"The scores are of {self.scores.model or 'another model'}, not of {self.loaded.name}.")
        if self.fits and self.train is None:
            raise MapError("A map of directions or of repaired cuts needs training data to fit them to.")
        labelled = self.train is not None and min(len(self.train.class_names), len(self.test.class_names)) > 1
        if self.loaded.shape.features and not labelled:
            raise MapError("A map of a model without a classifier needs labelled training images, for k-NN.")

    @property
    def fits(self) -> bool:
        """True where inputs shape the weights of a cut."""
        return self.repair or self.basis == Basis.DIRECTIONS

    @property
    def task(self) -> Task:
        return task_of(self.loaded.shape)

    @cached_property
    def inputs(self) -> ProxySet:
        """The held-out inputs: the same ones each time."""
        most = MOST_BLOCKS if self.loaded.shape.is_language else self.held_out
        return draw_proxy(self.test, min(self.held_out, most, len(self.test)), 0)

    @cached_property
    def _batches(self) -> list[tuple[Tensor, Tensor]] | None:
        """Held-out batches on the device, None where they are too many to keep."""
        kept, size = [], 0
        for batch in self.read():
            kept.append(batch)
            size += batch[0].nbytes
            if size > KEPT_BYTES:
                return None
        return kept

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.loaded.model.parameters()).device
        return self.inputs.batches(self.loaded.shape.batch_size(250, large=16), device)

    @cached_property
    def teacher(self) -> TeacherPass:
        """The whole model on the held-out inputs."""
        return run_teacher(self.loaded.model, self._batches or self.read(), readout=self._readout)

    @cached_property
    def _readout(self) -> Readout:
        return readout_of(self.loaded.shape, self.train, self.test)

    @cached_property
    def _worth(self) -> Worth:
        return Worth(self.scores, self.basis)

    @cached_property
    def _statistics(self) -> ProxyStatistics | None:
        if self.basis == Basis.CHANNELS or self.train is None:
            return None
        adapter = adapt(self.loaded.model, self.loaded.shape)
        return collect_statistics(adapter, self._fitted_inputs(self.train), report=self.report)

    def _fitted_inputs(self, train: ImageSet) -> ProxySet:
        return draw_proxy(train, min(self.fitted_to, len(train)), 0)

    def empty(self) -> Map:
        """The map without any cut, of what this measures."""
        teacher = self.teacher.outcomes.summary()
        return Map(
            model=self.loaded.name,
            model_digest=self.loaded.digest,
            scores_digest=self.scores.digest,
            criterion=self.scores.criterion,
            source_shape=self.loaded.shape.to_dict(),
            basis=self.basis,
            repair=self.repair,
            data=self.test.name,
            data_digest=self.inputs.digest,
            inputs=len(self.inputs),
            samples=teacher.images,
            fitted=self._fitted(),
            whole=_measured(teacher),
        )

    def _fitted(self) -> Fitted | None:
        if not self.fits or self.train is None:
            return None
        proxy, metric = self._fitted_inputs(self.train), "reading" if self.basis == Basis.DIRECTIONS else ""
        return Fitted(
            repair=self.repair, metric=metric, data=proxy.name, digest=proxy.digest, images=len(proxy), seed=0
        )

    def measure(self, plan: PruningPlan, origin: Origin = "given") -> MeasuredCut:
        """Cut by a plan, repair where this does, and evaluate. Raises PlanError where the plan does not fit."""
        start = time.perf_counter()
        student = cut(
            self.loaded,
            plan,
            repair=self.repair,
            data=self.train,
            images=self.fitted_to,
            seed=0,
            stats=self._statistics,
        )
        batches, logits = self._batches or self.read(), self.teacher.logits
        result = evaluate(student, batches, teacher=self.loaded.model, teacher_logits=logits, readout=self._readout)
        point, seconds = self._worth.of(plan), time.perf_counter() - start
        return MeasuredCut(
            **point.model_dump(), **_measured(result).model_dump(), plan=plan.digest, origin=origin, seconds=seconds
        )


def _measured(result: Evaluation) -> Measured:
    return Measured(
        kl=max(result.kl or 0.0, 0.0), kl_stderr=result.kl_stderr or 0.0, top1=result.top1, loss=result.loss,
        loss_stderr=result.loss_stderr or 0.0,
    )  # fmt: skip
