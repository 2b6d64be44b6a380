"""The effect of removing one channel or direction: the model's answers on fixed test images before and after.

The whole model's streams on those images are kept, so that a removal computes only the blocks in which it shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services import compute, evaluation, jobs
from pages.services.open_model import OpenModel
from upvit_core.cache import Cache
from upvit_core.records.shape import OUTPUT_BYTES, Component

if TYPE_CHECKING:
    from torch import Tensor

    from upvit_core.importance.removal import Streams
    from upvit_core.models.adapter import Adapter
    from upvit_core.models.checkpoint import LoadedModel

    Batches = Iterable[tuple[Tensor, Tensor]]

IMAGES = 500
TOKENS = 4000
MAPS = 4


@dataclass(frozen=True)
class Effect:
    """The effect of one change: KL (N,), and probabilities (N, classes) before and after.

    N counts images, or tokens of a text; `indices` are their positions.

    maps: of an attention channel, its head's attention to the patches with and without it, on the most affected images,
    (images, 2, rows, columns).
    """

    kl: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    answers: tuple[str, ...]
    indices: np.ndarray
    data: str
    norms: dict[str, float] = field(default_factory=dict)
    maps: np.ndarray | None = None

    @property
    def changed(self) -> np.ndarray:
        """Images or tokens (N,) whose likeliest class is another one after the change."""
        changed: np.ndarray = self.before.argmax(1) != self.after.argmax(1)
        return changed


def prepare(model: OpenModel) -> None:
    """Run the whole model in the background before anything is clicked, where it is small."""
    if not model.can_measure or not evaluation.measures_at_once(model):
        return

    def work(report: jobs.Report) -> None:
        from upvit_core.models.build import adapt

        live = model.weights()
        _batches(model, IMAGES, adapt(live.model, live.shape), report)

    jobs.ensure(f"whole {model.data_key}", work, "Getting ready for a click")


def _batches(
    model: OpenModel, count: int, adapter: Adapter, report: jobs.Report
) -> tuple[Streams | Batches, np.ndarray]:
    """The input of `remove_one`, kept streams where there is room for them, else batches; and the indices of images."""
    from upvit_core.importance.removal import streams

    data = model.images("val")
    shape = model.shape
    count = min(count, TOKENS // shape.answers, OUTPUT_BYTES // shape.output_bytes)
    indices = evaluation.evaluation_indices(data, max(count, 1))
    size = shape.batch_size(50, large=8)

    def run() -> Streams | None:
        return streams(adapter, data.batches(size, indices=indices), lambda done: report(done / len(indices)))

    kept = None
    if evaluation.measures_at_once(model):
        kept = _streams().get((model.data_key, len(indices), compute.device(model.device)), run)
    return kept or data.batches(size, indices=indices), indices


@st.cache_resource(show_spinner=False)
def _streams() -> Cache[Streams | None]:
    return Cache(2)


def removal_job(
    model: OpenModel, component: Component, block: int, number: int, count: int = IMAGES
) -> jobs.Job[Effect]:
    """The job that removes one channel and evaluates the model on every image."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> Effect:
        report.step("reading the weights")
        from upvit_core.importance.attention_maps import attention_maps
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.build import adapt

        live, data = model.weights(), model.images("val")
        report.step(f"{model.task.batch_items} with and without it")
        adapter = adapt(live.model, live.shape)
        batches, indices = _batches(model, count, adapter, report)
        result = remove_one(adapter, batches, key, number, lambda done: report(done / len(indices)))
        indices = data.readable(indices)
        maps = None
        if component == "attention":
            top = indices[np.argsort(-result.kl.numpy(), kind="stable")[:MAPS]]
            pixels = next(iter(data.batches(len(top), indices=top)))[0]
            pair = attention_maps(adapter, pixels, block, number)
            maps = None if pair is None else np.stack([pair[0].numpy(), pair[1].numpy()], axis=1)
        effect = effect_of(model, result.before, result.after, indices)
        return replace(effect, norms=weight_norms(live, key, number), maps=maps)

    return jobs.ensure(f"remove {model.data_key} {key} {number} {count}", work, f"Removing channel {number}")


def weight_norms(live: LoadedModel, key: str, number: int) -> dict[str, float]:
    """L2 norms of the weights that carry the channel, by layer; of a residual, only where it comes in and goes out."""
    from upvit_core.models.adapter import carriers

    tensors = {name: tensor for name, tensor in carriers(live.model, live.shape, key).items() if "bias" not in name}
    if key.startswith("residual"):
        names = list(tensors)
        tensors = {name: tensors[name] for name in (names[0], names[-1])}
    return {name.replace(".weight", ""): float(t[number].detach().norm()) for name, t in tensors.items()}


def direction_removal_job(model: OpenModel, component: Component, block: int, number: int) -> jobs.Job[Effect]:
    """The job that removes one direction, factor or FFN channel of the rotated model and evaluates it."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> Effect:
        report.step("rotating the model")
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.build import adapt
        from upvit_core.models.predict import predict
        from upvit_core.pruning.basis import prune_directions
        from upvit_core.pruning.basis.scores import whole_plan

        live, data, shape = model.weights(), model.images("val"), model.shape
        stats = evaluation.statistics(model, report)
        indices = evaluation.evaluation_indices(data, IMAGES)
        batches = data.batches(shape.batch_size(100, large=8), indices=indices)
        if component == "residual":
            rest = tuple(i for i in range(shape.embed_dim) if i != number)
            without = prune_directions(live.model, shape, whole_plan(shape, rest), stats)
            images = list(batches)
            before, after = predict(live.model, images)[0], predict(without, images)[0]
        else:
            whole = prune_directions(live.model, shape, whole_plan(shape), stats)
            rotated = adapt(whole, shape.with_linear_features())
            result = remove_one(rotated, batches, key, number, lambda done: report(done / len(indices)))
            before, after = result.before, result.after
        return effect_of(model, before, after, data.readable(indices))

    return jobs.ensure(f"remove direction {model.data_key} {key} {number}", work, f"Removing number {number}")


def effect_of(model: OpenModel, before: Tensor, after: Tensor, indices: np.ndarray) -> Effect:
    """The effect of a change, from outputs (N, …, outputs) before and after it on these images or blocks of text."""
    judged = evaluation.readout(model)
    probabilities = judged.voter(model.weights().model)
    data, answers = model.images("val"), model.shape.answers
    before, after = (logits.flatten(0, -2) for logits in (before, after))
    return Effect(
        kl=judged.kl(before, after).clamp_min(0).numpy(),
        before=probabilities(before).numpy(),
        after=probabilities(after).numpy(),
        labels=data.answers(indices),
        names=tuple(model.weights().class_names or data.answer_names),
        answers=data.answer_names,
        indices=(indices[:, None] * answers + np.arange(answers)).ravel(),
        data=data.name,
    )
