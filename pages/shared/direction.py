"""Directions on Importance: the same pictures for the other basis, and what the removal of one direction does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pages.shared import jobs, knobs, measured, opened, removal, scoring, whatif
from pages.shared.opened import Opened
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import Component

if TYPE_CHECKING:
    import torch

WHAT: dict[Component, str] = {
    "residual": "Directions of the stream: fixed mixtures of its channels, the one that the layers need most first. "
    "Number 0 is the constant, which LayerNorm takes and every plan keeps.",
    "attention": "Factors inside the heads: each is one mixture of q, of k and of v, the strongest of its head first.",
    "ffn": "Hidden channels, as they are: GELU allows no mixing. The score is what the others cannot make up for.",
}


def switch(model: Opened, scores: ImportanceScores, spec: str) -> ImportanceScores | None:
    """Draw the switch of the basis; the scores to show: of channels, or of directions. None while these are made."""
    if scores.basis == "directions" or not model.shape.has_directions:
        return scores
    possible = model.has_weights and bool(spec)
    knobs.basis_control(model.shape, possible)
    if not possible or whatif.current(model.shape).basis == "channels":
        return scores
    job = scoring.directions(model, spec)
    found: ImportanceScores | None = job.result if jobs.ready(job, height=560) else None
    return found


def removal_job(model: Opened, component: Component, block: int, number: int, spec: str) -> jobs.Job:
    """The job that removes one direction, factor or FFN channel of the rotated model and looks at every image."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> removal.Effect:
        report.say("rotating the model")
        from upvit_core.basis import prune_directions
        from upvit_core.basis.scores import whole_plan
        from upvit_core.evaluation import predict
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.adapt import adapt

        live, data = opened.live(model), measured.images(model, spec, "val")
        stats = measured.statistics(model, spec, report)
        indices = measured.evaluation_indices(data, removal.IMAGES)
        batches = data.batches(100 if model.shape.img_size[0] < 100 else 8, indices=indices)
        shape = live.shape
        if component == "residual":
            rest = tuple(i for i in range(shape.embed_dim) if i != number)
            without = prune_directions(live.model, shape, whole_plan(shape, rest), stats)
            kept = list(batches)
            before, after = predict(live.model, kept)[0], predict(without, kept)[0]
        else:
            rotated = prune_directions(live.model, shape, whole_plan(shape), stats)
            result = remove_one(
                adapt(rotated, shape), batches, key, number, lambda done: report(done / len(indices))
            )  # fmt: skip
            before, after = result.before, result.after
        return _effect(before, after, np.asarray(indices), data.labels()[indices], live.class_names, data)

    return jobs.start(
        f"remove direction {opened.identity(model)} {spec} {key} {number}", work, f"Removing number {number}"
    )


def _effect(
    before: torch.Tensor, after: torch.Tensor, indices: np.ndarray, labels: np.ndarray, names: object, data: object
) -> removal.Effect:
    q, p = (logits.double().log_softmax(-1) for logits in (before, after))
    return removal.Effect(
        kl=(q.exp() * (q - p)).sum(-1).clamp_min(0).numpy(), before=q.exp().numpy(), after=p.exp().numpy(),
        labels=labels, names=tuple(names or data.class_names), indices=indices, data=data.name, norms={},  # type: ignore[attr-defined,call-overload]
    )  # fmt: skip
