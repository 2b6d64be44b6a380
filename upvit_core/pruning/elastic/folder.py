"""Elastic models made from loaded ones, kept in folders that stock timm opens, and cut to a size without images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.errors import PlanError, UnsupportedModelError
from upvit_core.importance.criterion import Progress, Proxy, Report, silent
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import LoadedModel, load_model, save_model
from upvit_core.models.output import with_output
from upvit_core.models.tensors import digest_of
from upvit_core.models.vit import ViTAdapter
from upvit_core.pruning.basis.fold import load
from upvit_core.pruning.basis.scores import directions_scores
from upvit_core.pruning.basis.statistics import collect_statistics
from upvit_core.pruning.elastic.corrections import corrections_of
from upvit_core.pruning.elastic.full_width import full_width_state, norm_scales
from upvit_core.pruning.elastic.moments import Solver, gather_moments
from upvit_core.pruning.elastic.prefix import size_of
from upvit_core.pruning.surgery import linear_features
from upvit_core.records.basis import Basis
from upvit_core.records.elastic import Elastic, ElasticOrigin
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape

SCORES = "scores.safetensors"


@dataclass(frozen=True)
class ElasticModel(LoadedModel):
    """A full-width model whose first channels are its sizes: the record to cut them by, and scores in that order."""

    elastic: Elastic
    scores: ImportanceScores


def make_elastic(
    loaded: LoadedModel, images: ImageSet, *, n: int = 2000, seed: int = 0, report: Report = silent
) -> ElasticModel:
    """The elastic model of a loaded ViT; `n` training images, drawn by `seed`, order its channels. No labels are used.

    Without a qkv bias the model gets one, which takes over the bias of the norm before it; without a classifier it
    gets a linear layer that makes its features, as thinner sizes need one.
    Raises UnsupportedModelError for models whose residual cannot be rotated.
    """
    if not loaded.shape.has_directions:
        raise UnsupportedModelError(
            f"{loaded.name} cannot be made elastic, since its residual cannot be rotated: {loaded.shape.unrotated}; "
            "prune it by channels."
        )
    loaded = _with_linear_layers(loaded)
    proxy = draw_proxy(images, min(n, len(images)), seed)
    adapter = with_output(adapt(loaded.model, loaded.shape), proxy)
    stats = collect_statistics(adapter, proxy, report=report)
    found = directions_scores(adapter, proxy, stats, report=report)
    order = {b: torch.from_numpy(np.argsort(-found.ffn(b), kind="stable")) for b in range(loaded.shape.depth)}
    state = full_width_state(stats, order)
    model = load(state, loaded.shape, like=next(loaded.model.parameters()))
    digest = digest_of(model.state_dict(), loaded.shape)
    elastic = Elastic(
        loaded.shape,
        ElasticOrigin(
            model=loaded.name,
            model_digest=loaded.digest,
            weights=digest,
            metric=stats.metric,
            data=proxy.name,
            data_digest=proxy.digest,
            images=len(proxy),
            seed=seed,
        ),
        norm_scales(stats).numpy(),
        gather_moments(ViTAdapter(model, loaded.shape), proxy, report=report),
    )
    elastic = replace(elastic, corrections=dict(_corrections(model, elastic, proxy, report)))
    known: dict[str, Any] = {field.name: getattr(loaded, field.name) for field in fields(LoadedModel)}
    known |= {"model": model, "name": f"{loaded.name} elastic", "digest": digest, "source": ""}
    values = {f"ffn.{b}": found.ffn(b)[order[b].numpy()] for b in order}
    scores = found.with_values(values, basis=Basis.CHANNELS, shape=loaded.shape, model=known["name"])
    return ElasticModel(**known, elastic=elastic, scores=replace(scores, model_digest=digest))


def _corrections(model: nn.Module, elastic: Elastic, proxy: Proxy, report: Report) -> Iterator[tuple[str, np.ndarray]]:
    shape, shares = elastic.shape, [share for share in elastic.origin.ladder if share]
    for number, share in enumerate(shares, 1):

        def told(now: Progress, what: str = f"size {number} of {len(shares)}") -> None:
            report(replace(now, what=what))

        after = size_of(shape, Ratios.equal(share))
        found = corrections_of(cut_size(model, elastic, after), model, shape, after, proxy, told)
        yield from ((f"{share:g}/{name}", change) for name, change in found.items())


def _with_linear_layers(loaded: LoadedModel) -> LoadedModel:
    weights, shape = linear_features(dict(loaded.model.state_dict()), replace(loaded.shape, qkv_bias=True))
    if shape == loaded.shape:
        return loaded
    like = weights["pos_embed"]
    for b, block in enumerate(shape.blocks):
        weights.setdefault(f"blocks.{b}.attn.qkv.bias", like.new_zeros(3 * block.attention))
    return replace(loaded, model=load(weights, shape, like=like), shape=shape)


def save_elastic(model: ElasticModel, folder: str | Path) -> None:
    """Write the folder: a stock timm model with the original's logits, its scores, and the record beside it."""
    folder = Path(folder)
    save_model(
        model.model,
        folder,
        shape=model.shape,
        pretrained_cfg=model.pretrained_cfg,
        name=model.name,
        class_names=model.class_names,
    )
    model.scores.save(folder / SCORES)
    model.elastic.save(folder)


def open_elastic(folder: str | Path, **opening: Any) -> ElasticModel:
    """Open an elastic folder; `opening` are options of `load_model`.

    Raises PlanError where the folder is none, or its weights are not those that its record was made for.
    """
    elastic = Elastic.load(Path(folder).expanduser())
    loaded = load_model(folder, **opening)
    if loaded.digest != elastic.origin.weights:
        raise PlanError(f"The weights in {folder} are not those of its elastic record; make it again with `elastic`.")
    scores = ImportanceScores.load(Path(folder).expanduser() / SCORES)
    known = {field.name: getattr(loaded, field.name) for field in fields(LoadedModel)}
    return ElasticModel(**known, elastic=elastic, scores=scores)


def cut_size(model: nn.Module, elastic: Elastic, after: ModelShape, *, repair: bool | None = None) -> nn.Module:
    """A stock model of the size `after` in eval mode, on the device and in the dtype of the full-width `model`.

    `repair` refits the cut layers from the record's second moments, as in training (None: if it has them).
    Raises PlanError where `after` is no size of this model, or repair is asked for and no moments are there.
    """
    if repair and not elastic.moments:
        raise PlanError("This elastic model has no second moments to repair by; cut it without repair.")
    like = next(model.parameters())
    record = replace(elastic, moments={}, corrections={}) if repair is False else elastic
    state = {name: tensor.detach().cpu().double() for name, tensor in model.state_dict().items()}
    weights = Solver(record, torch.zeros((), dtype=torch.float64), once=True).state(state, after)
    thin = build_model(after, device="meta")
    made = {name: tensor.detach().to(like, copy=True).contiguous() for name, tensor in weights.items()}
    thin.load_state_dict(made, assign=True)
    return thin.eval()
