"""Scores of directions, in the same record as scores of channels, so that plans and pictures work in either basis.

Residual: entry 0 is the constant, which LayerNorm spends and every plan keeps; the others are directions, the most
important first. Attention: entry i of a head is its i-th strongest factor of q·k together with its i-th of v·proj;
neighbours of a head out of order share their mean, so that a cut keeps the leading factors.
FFN: channels, by what the rest cannot make up for (`fisher`) or by removal (`kl`). All in nats, summed over images.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.errors import ScoresError
from upvit_core.importance import sharding
from upvit_core.importance.criterion import Clock, Criterion, Proxy, Report, frozen, silent
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.adapter import Adapter
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.output import output_of, with_output
from upvit_core.pruning.basis.neurons import elimination_scores
from upvit_core.pruning.basis.residual import pool_blocks
from upvit_core.pruning.basis.slice import prune_directions
from upvit_core.pruning.basis.statistics import ProxyStatistics, collect_statistics
from upvit_core.records.basis import Basis
from upvit_core.records.criteria import OF_DIRECTIONS
from upvit_core.records.plan import Kept, PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape


def whole_plan(shape: ModelShape, residual: tuple[int, ...] | None = None) -> PruningPlan:
    """A plan of directions that keeps everything, or only the given entries of the residual."""
    whole = PruningPlan.whole(shape, basis=Basis.DIRECTIONS)
    return whole.model_copy(update={"residual": Kept(keep=residual)}) if residual else whole


def check_directions(criterion: str) -> None:
    """Raises ScoresError where directions have no scores by this criterion."""
    if criterion not in OF_DIRECTIONS:
        raise ScoresError(f"Directions are scored by {' or '.join(OF_DIRECTIONS)}, not by {criterion!r}.")


def directions_scores(
    adapter: Adapter,
    proxy: Proxy,
    stats: ProxyStatistics,
    criterion: str = "fisher",
    *,
    report: Report = silent,
) -> ImportanceScores:
    """Scores of directions, with the keys and widths of channel scores; of several processes, each does its part.

    `fisher` takes the residual's scores from `stats` (what each direction adds to those before it, to second order)
    and one pass over `proxy` for the rest; `kl` removes each direction in turn (Eq. 1 exactly): D cuts and passes for
    the residual, and the exact channel score of the rotated model for the rest.
    """
    check_directions(criterion)
    start = time.perf_counter()
    adapter = with_output(adapter, proxy)
    shape, model = adapter.shape, adapter.model
    own, device = sharding.own_shard(proxy), next(model.parameters()).device
    rotated = adapt(prune_directions(model, shape, whole_plan(shape), stats), shape.with_linear_features())
    rotated.output = adapter.output
    inner: Criterion
    if criterion == "kl":
        exact = {key: tuple(range(n)) for key, n in expected_widths(shape).items() if key != "residual"}
        inner, residual = KL(channels=exact), _removal_kl(adapter, own, stats, report)
    else:
        inner, residual = Fisher(), stats.direction_scores.cpu().numpy()
    scores = inner.attribute(rotated, own, report)
    scores = sharding.all_reduce_scores(scores, proxy, device)
    values = {"residual": np.concatenate([[residual.max()], residual])}
    for b, block in enumerate(shape.blocks):
        inside = torch.tensor(scores.attention(b)).unflatten(0, (block.num_heads, -1))  # (h, d)
        values[f"attention.{b}"] = torch.cat([pool_blocks(head) for head in inside]).numpy()
    if criterion == "fisher":
        mine = sharding.own_items(range(shape.depth))
        found = {f"ffn.{b}": elimination_scores(stats, b).cpu().numpy() for b in mine}
        values |= sharding.merge(found, device)
    origin = {"statistics_images": stats.images, "statistics_digest": stats.data_digest, "statistics_seed": stats.seed}
    return scores.with_values(
        values,
        stderr={key: value for key, value in scores.stderr.items() if criterion == "kl" or key not in values},
        basis=Basis.DIRECTIONS,
        seconds=time.perf_counter() - start,
        notes={**scores.notes, "metric": stats.metric, "constant": 0, **origin},
    )


def score_directions(
    loaded: LoadedModel,
    images: ImageSet,
    criterion: str = "fisher",
    *,
    n: int = 2000,
    seed: int = 0,
    balanced: bool = False,
    report: Report = silent,
) -> ImportanceScores:
    """Find the directions of a loaded model on `n` proxy images by `seed`, and score them; see `directions_scores`."""
    check_directions(criterion)
    proxy = draw_proxy(images, min(n, len(images)), seed, balanced=balanced)
    adapter = with_output(adapt(loaded.model, loaded.shape), proxy)
    stats = collect_statistics(adapter, proxy, report=report)
    scores = directions_scores(adapter, proxy, stats, criterion, report=report)
    return replace(scores, shape=loaded.shape, model=loaded.name, model_digest=loaded.digest)


@torch.no_grad()
def _removal_kl(adapter: Adapter, proxy: Proxy, stats: ProxyStatistics, report: Report) -> np.ndarray:
    """Σ_i KL(q_i || p_i) of the model cut along all directions but one, for each of the D - 1 directions."""
    model, shape, output = adapter.model, adapter.shape, output_of(adapter)
    device = next(model.parameters()).device
    everything, batch_size = range(shape.embed_dim), shape.batch_size(50, large=8)
    clock = Clock(shape.embed_dim - 1, "directions", report)
    with frozen(model):
        whole = [output.reference(model(images)) for images, _ in proxy.batches(batch_size, device)]
    result = np.zeros(shape.embed_dim - 1)
    for direction in everything[1:]:
        plan = whole_plan(shape, tuple(i for i in everything if i != direction))
        cut = prune_directions(model, shape, plan, stats)
        batches = zip(whole, proxy.batches(batch_size, device), strict=True)
        result[direction - 1] = sum(float(output.kl(q, cut(images)).sum()) for q, (images, _) in batches)
        clock.advance(1, "residual")
    total = torch.from_numpy(result).to(device)
    sharding.add_up(total)
    return total.cpu().numpy()
