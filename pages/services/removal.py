"""One channel removed, and nothing else: what the model says about a fixed part of its test images before and after.

What the whole model makes of those images is kept, so that a removal computes only the blocks in which it shows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from pages.services import evaluation, jobs, open_model
from pages.services.open_model import OpenModel
from upvit_core.profiling.macs import count_macs
from upvit_core.records.shape import Component
from upvit_core.records.task import task_of

if TYPE_CHECKING:
    import torch

if TYPE_CHECKING:
    from upvit_core.importance.removal import Streams
    from upvit_core.models.adapter import Adapter
    from upvit_core.models.checkpoint import LoadedModel

IMAGES = 500
TOKENS = 4000
MAPS = 4
MOST_KEPT = 2


@dataclass(frozen=True)
class Effect:
    """What removing one channel does: KL (N,) and probabilities (N, classes) before and after, and some images.

    Of a text, N counts tokens, and `indices` their places.

    maps: of an attention channel, its head's attention to the patches with and without it, on the most affected images,
    (images, 2, rows, columns).
    """

    kl: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    indices: np.ndarray
    data: str
    norms: dict[str, float]
    maps: np.ndarray | None = None

    @property
    def changed(self) -> np.ndarray:
        return self.before.argmax(1) != self.after.argmax(1)


def at_once(model: OpenModel) -> bool:
    """Whether the model is so small that a click alone starts the removal."""
    return count_macs(model.shape) <= evaluation.AUTOMATIC_MACS


def prepare(model: OpenModel, spec: str) -> None:
    """Read weights and images, and run the whole model, in the background before anything is clicked."""
    key = f"whole {open_model.identity(model)} {spec}"
    if not model.has_weights or not spec or not at_once(model) or jobs.find(key) is not None:
        return

    def work(report: jobs.Report) -> None:
        from upvit_core.models.build import adapt

        live = open_model.live(model)
        _batches(model, spec, IMAGES, adapt(live.model, live.shape), report)

    jobs.start(key, work, "Getting ready for a click")


def _batches(model: OpenModel, spec: str, count: int, adapter: Adapter, report: jobs.Report) -> tuple[Any, np.ndarray]:
    """What `remove_one` takes, kept streams where there is room for them, else batches; and which images they are."""
    from upvit_core.importance.removal import streams

    data = evaluation.images(model, spec, "val")
    indices = evaluation.evaluation_indices(data, min(count, TOKENS // model.shape.answers))
    size = 50 if model.shape.img_size[0] < 100 else 8
    kept, key = _kept(), (open_model.identity(model), spec, len(indices))
    if at_once(model) and key not in kept:
        kept[key] = streams(adapter, data.batches(size, indices=indices), lambda done: report(done / len(indices)))
        while len(kept) > MOST_KEPT:
            kept.popitem(last=False)
    return kept.get(key) or data.batches(size, indices=indices), indices


@st.cache_resource(show_spinner=False)
def _kept() -> OrderedDict[Any, Streams | None]:
    return OrderedDict()


def removal_job(
    model: OpenModel, component: Component, block: int, number: int, spec: str, count: int = IMAGES
) -> jobs.Job:
    """The job that removes one channel and looks at every image."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> Effect:
        report.say("reading the weights")
        from upvit_core.evaluation import kl_by_image as kl_by_sample
        from upvit_core.importance.attention_maps import attention_maps
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.build import adapt

        live, data = open_model.live(model), evaluation.images(model, spec, "val")
        report.say(f"{task_of(model.shape).batch_items} with and without it")
        adapter = adapt(live.model, live.shape)
        batches, indices = _batches(model, spec, count, adapter, report)
        result = remove_one(adapter, batches, key, number, lambda done: report(done / len(indices)))
        before, after = (logits.flatten(0, -2) for logits in (result.before, result.after))
        kl, answers = kl_by_sample(before, after), model.shape.answers
        maps = None
        if component == "attention":
            top = np.asarray(indices)[np.argsort(-result.kl.numpy(), kind="stable")[:MAPS]]
            pixels = next(iter(data.batches(len(top), indices=top)))[0]
            found = attention_maps(adapter, pixels, block, number)
            maps = None if found is None else np.stack([found[0].numpy(), found[1].numpy()], axis=1)
        return Effect(
            kl=kl.numpy(),
            before=before.float().softmax(-1).numpy(),
            after=after.float().softmax(-1).numpy(),
            labels=data.answers(indices),
            names=tuple(live.class_names or data.answer_names),
            indices=(np.asarray(indices)[:, None] * answers + np.arange(answers)).ravel(),
            data=data.name,
            norms=weight_norms(live, key, number),
            maps=maps,
        )

    return jobs.start(
        f"remove {open_model.identity(model)} {spec} {key} {number} {count}", work, f"Removing channel {number}"
    )


def weight_norms(live: LoadedModel, key: str, number: int) -> dict[str, float]:
    """L2 norms of the weights that carry the channel, by layer; of a residual, only where it comes in and goes out."""
    from upvit_core.models.adapter import carriers

    found = {name: tensor for name, tensor in carriers(live.model, live.shape, key).items() if "bias" not in name}
    if key.startswith("residual"):
        names = list(found)
        found = {name: found[name] for name in (names[0], names[-1])}
    return {name.replace(".weight", ""): float(t[number].detach().norm()) for name, t in found.items()}


def direction_removal_job(model: OpenModel, component: Component, block: int, number: int, spec: str) -> jobs.Job:
    """The job that removes one direction, factor or FFN channel of the rotated model and looks at every image."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> Effect:
        report.say("rotating the model")
        from upvit_core.evaluation import predict
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.build import adapt
        from upvit_core.pruning.basis import prune_directions
        from upvit_core.pruning.basis.scores import whole_plan

        live, data = open_model.live(model), evaluation.images(model, spec, "val")
        stats = evaluation.statistics(model, spec, report)
        indices = evaluation.evaluation_indices(data, IMAGES)
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
        f"remove direction {open_model.identity(model)} {spec} {key} {number}", work, f"Removing number {number}"
    )


def _effect(
    before: torch.Tensor, after: torch.Tensor, indices: np.ndarray, labels: np.ndarray, names: object, data: object
) -> Effect:
    q, p = (logits.double().log_softmax(-1) for logits in (before, after))
    return Effect(
        kl=(q.exp() * (q - p)).sum(-1).clamp_min(0).numpy(), before=q.exp().numpy(), after=p.exp().numpy(),
        labels=labels, names=tuple(names or data.class_names), indices=indices, data=data.name, norms={},  # type: ignore[attr-defined,call-overload]
    )  # fmt: skip
