"""Second moments of activations and of gradients, gathered in one stream over the proxy images.

All are of the FOLDED model. Gradients are those of the model's own output: with F = diag(q) - q qᵀ = Σ_r λ_r u_r u_rᵀ,
each √λ_r·u_r is sent back from the logits and the squares are added, so that to second order
KL(q || p) ≈ ½ Σ_r (change along r)². Products are taken in the model's dtype for one batch and added up in float64;
those of the streams that are read are taken in float64 too, since a few directions may hold a hundred times the energy
of the rest, whose moments float32 would leave indefinite. Memory does not depend on the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from upvit_core.importance import sharding
from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, silent
from upvit_core.importance.fisher import Fisher
from upvit_core.models.adapter import Adapter
from upvit_core.models.device import exact_float32
from upvit_core.models.output import output_of, with_output
from upvit_core.models.output_directions import LIKELIEST
from upvit_core.models.transformer import AttentionTrace, FeedForwardTrace
from upvit_core.models.vit import ViTAdapter
from upvit_core.out_of_memory import in_halves
from upvit_core.pruning.basis.fold import State, fold, state_of
from upvit_core.pruning.basis.residual import Metric, residual_directions
from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class ProxyStatistics:
    """Second moments by name, float64, summed over images and tokens, of the folded model.

    state: the folded weights. grams, each (n, n): `reader.{s}` the normalised stream at reader s and
    `reader_gradient.{s}` the gradient there, where s counts norm1 and norm2 of every block and then the final norm; of
    block b `query.{b}` q, `key.{b}` k less its mean over the image, `mixed.{b}` the input of proj and
    `mixed_gradient.{b}` its gradient, `hidden.{b}` [activation; 1] before fc2, `written_gradient.{b}` the gradient of
    what fc2 writes. rows: the number of tokens in each of these sums. token_gradients: of what a linear layer writes
    (`q`, `k`, `v`, `proj`, `fc1`, `fc2` of every block, as `{part}.{b}`) the squared gradient, summed over images and
    channels, token by token (T,): the positions on which the output depends. directions: the residual's D - 1
    directions (D, D-1) by `metric`, the most important first, and the gain of each over those before it, in nats.
    """

    shape: ModelShape
    state: State
    grams: dict[str, Tensor]
    rows: dict[str, int]
    token_gradients: dict[str, Tensor]
    directions: Tensor
    direction_scores: Tensor
    metric: str
    images: int
    data: str = ""
    data_digest: str = ""
    seed: int = 0
    seconds: float = 0.0

    def mean(self, name: str) -> Tensor:
        """A second moment per token rather than its sum."""
        return self.grams[name] / self.rows[name]

    def readers(self) -> tuple[list[Tensor], list[Tensor]]:
        """At every reader the mean second moment of the normalised stream, and the summed one of the gradient."""
        return reader_moments(self.grams, self.rows, self.shape)


def reader_moments(
    grams: dict[str, Tensor], rows: dict[str, int], shape: ModelShape
) -> tuple[list[Tensor], list[Tensor]]:
    """Of all readers, in order: mean second moments of the normalised stream, summed ones of the gradient."""
    sites = range(2 * shape.depth + 1)
    return [grams[f"reader.{s}"] / rows[f"reader.{s}"] for s in sites], [grams[f"reader_gradient.{s}"] for s in sites]


def collect_statistics(
    adapter: Adapter,
    proxy: Proxy,
    *,
    metric: Metric = "reading",
    num_directions: int = 2,
    batch_size: int | None = None,
    report: Report = silent,
) -> ProxyStatistics:
    """Fold a copy of the adapter's model and collect everything that choosing a basis needs.

    num_directions: eigenvectors of each image's output Fisher that are sent back, one backward pass each. batch_size:
    images at once (None: as `fisher` takes them); a batch that does not fit into memory is halved. Of several
    processes, each reads its part of the images.
    """
    adapter = with_output(adapter, proxy)
    parameter = next(adapter.model.parameters())
    folded = fold(adapter.model, adapter.shape)
    vit = ViTAdapter(folded, adapter.shape.with_linear_features())
    vit.output, generator = adapter.output, torch.Generator().manual_seed(0)
    own = sharding.own_shard(proxy)
    sums, clock = _Sums(), Clock(len(own), "images", report)
    if batch_size is None:
        batch_size = Fisher(num_directions=num_directions).batch_of(adapter.shape, parameter.device)
    with frozen(folded), torch.enable_grad(), exact_float32():
        for images, _ in own.batches(batch_size, parameter.device):
            compute = partial(_moments_of, vit, num_directions=num_directions, generator=generator)
            for part, (found, hidden) in in_halves(compute, images.to(parameter.dtype)):
                sums.merge(found)
                while hidden:
                    name, x = hidden.popitem()
                    sums.add(name, torch.nn.functional.pad(x, (0, 1), value=1))
                clock.advance(len(part), "statistics")
    sums.over_processes()
    directions, scores = residual_directions(*reader_moments(sums.grams, sums.rows, adapter.shape), metric)
    sharding.agree(directions, scores)
    return ProxyStatistics(
        shape=vit.shape,
        state=state_of(folded),
        grams=sums.grams,
        rows=sums.rows,
        token_gradients=sums.tokens,
        directions=directions,
        direction_scores=scores,
        metric=metric,
        images=len(proxy),
        data=proxy.name,
        data_digest=proxy.digest,
        seed=proxy.seed,
        seconds=clock.seconds,
    )


class _Sums:
    """Second moments by name, the rows in each, and squared gradients by token."""

    def __init__(self) -> None:
        self.grams: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.tokens: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, *, count: bool = True) -> None:
        """x: (..., n); adds xᵀx over all leading dimensions."""
        flat = x.detach().flatten(0, -2)
        gram = flat.T @ flat
        self.grams[name] = self.grams[name].add_(gram) if name in self.grams else gram.double()
        self.rows[name] = self.rows.get(name, 0) + (len(flat) if count else 0)

    def merge(self, other: _Sums) -> None:
        for own, more in ((self.grams, other.grams), (self.tokens, other.tokens)):
            for name, tensor in more.items():
                own[name] = own[name].add_(tensor) if name in own else tensor
        for name, count in other.rows.items():
            self.rows[name] = self.rows.get(name, 0) + count

    def over_processes(self) -> None:
        """Add the sums of the other processes."""
        names = sorted(self.rows)
        rows = torch.tensor([self.rows[name] for name in names], device=self.grams[names[0]].device)
        sharding.add_up(rows, *(tensors[name] for tensors in (self.grams, self.tokens) for name in sorted(tensors)))
        self.rows = dict(zip(names, rows.tolist(), strict=True))

    def add_tokens(self, name: str, gradient: Tensor) -> None:
        """gradient: (B, T, n); adds its squares over images and channels."""
        squares = gradient.double().square().sum((0, 2))
        self.tokens[name] = self.tokens[name] + squares if name in self.tokens else squares


def _moments_of(
    vit: ViTAdapter, images: Tensor, *, num_directions: int, generator: torch.Generator
) -> tuple[_Sums, dict[str, Tensor]]:
    """Sums over one batch, and apart from them the inputs (B, T, H) of fc2, whose moments are large: they are added
    once the batch is known to fit into memory."""
    sums = _Sums()
    x = vit.embed(images).detach().requires_grad_()
    attention: list[AttentionTrace] = []
    feed_forward: list[FeedForwardTrace] = []
    for b in range(vit.shape.depth):
        attention.append(vit.attention(b, x))
        feed_forward.append(vit.feed_forward(b, attention[-1].stream))
        x = feed_forward[-1].stream
    read = vit.last_read(x)
    logits = vit.classify(vit.pooled(read))

    wanted: dict[str, Tensor] = {f"reader_gradient.{2 * vit.shape.depth}": read}
    tokens: dict[str, Tensor] = {}
    for b, (a, f) in enumerate(zip(attention, feed_forward, strict=True)):
        tokens |= {f"q.{b}": a.q, f"k.{b}": a.k, f"v.{b}": a.v, f"proj.{b}": a.written}
        tokens |= {f"fc1.{b}": f.before, f"fc2.{b}": f.written}
        wanted |= {f"reader_gradient.{2 * b}": a.normed, f"reader_gradient.{2 * b + 1}": f.normed}
        wanted |= {f"mixed_gradient.{b}": a.mixed, f"written_gradient.{b}": f.written}
        centred = a.k - a.k.mean(1, keepdim=True)
        sums.add(f"query.{b}", a.q)
        sums.add(f"key.{b}", centred)
        sums.add(f"mixed.{b}", a.mixed)
        blk = vit.blocks[b]
        sums.add(f"reader.{2 * b}", (a.normed - blk.norm1.bias).double())
        sums.add(f"reader.{2 * b + 1}", (f.normed - blk.norm2.bias).double())
    sums.add(f"reader.{2 * vit.shape.depth}", read.double())

    outputs = output_of(vit).directions(logits.detach(), "eigenvectors", num_directions, LIKELIEST, generator).vectors
    for r, output in enumerate(outputs):
        asked = [*wanted.values(), *tokens.values()]
        gradients = torch.autograd.grad(logits, asked, output, retain_graph=r + 1 < len(outputs))
        for name, gradient in zip(wanted, gradients, strict=False):
            sums.add(name, gradient, count=r == 0)
        for name, gradient in zip(tokens, gradients[len(wanted) :], strict=True):
            sums.add_tokens(name, gradient)
    return sums, {f"hidden.{b}": f.hidden.detach() for b, f in enumerate(feed_forward)}
