"""Repair of a size by solving, from second moments that were kept of the full-width model, without images.

The solution is a linear map of the full layer's weights, and the map depends on the moments alone. So training goes
through it: every size starts repaired, and a slice of the trained weights is exactly what was trained.

A layer of the thinner model gets the first channels of what the full-width layer got: of a stream, less their mean, as
LayerNorm leaves them. Its weights become the best linear guess of the full layer's output from these, by ridge
regression. It differs from repair with images (`pruning.repair`), where every layer sees the thinner model's own
inputs, and those that write make up for what went wrong before them.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, silent
from upvit_core.models.vit import ViTAdapter
from upvit_core.pruning.basis.fold import State, last_readers
from upvit_core.pruning.elastic.corrections import correct
from upvit_core.pruning.elastic.prefix import head_channels, prefix_state, scaled_queries
from upvit_core.records.elastic import Elastic, moment_widths
from upvit_core.records.shape import ModelShape

RIDGE = 1e-5
"""In units of each input's second moment; float32 moments would not bear much less."""


@torch.no_grad()
def gather_moments(
    vit: ViTAdapter, proxy: Proxy, *, batch_size: int = 32, report: Report = silent
) -> dict[str, np.ndarray]:
    """The mean second moment of [input; 1] of every linear layer that can be repaired, as a lower triangle."""
    like, clock = next(vit.model.parameters()), Clock(len(proxy), "images", report)
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        flat = F.pad(x, (0, 1), value=1).flatten(0, -2)
        sums[name] = sums.get(name, torch.zeros((), device=x.device)) + (flat.T @ flat).double()
        rows[name] = rows.get(name, 0) + len(flat)

    with frozen(vit.model):
        for images, _ in proxy.batches(batch_size, like.device):
            x = vit.embed(images.to(like.dtype))
            for b in range(vit.shape.depth):
                attention = vit.attention(b, x)
                ffn = vit.feed_forward(b, attention.stream)
                add(f"normed.{2 * b}", attention.normed)
                add(f"mixed.{b}", attention.mixed)
                add(f"normed.{2 * b + 1}", ffn.normed)
                add(f"hidden.{b}", ffn.hidden)
                x = ffn.stream
            add(f"normed.{2 * vit.shape.depth}", vit.last_read(x))
            clock.advance(len(images), "moments")
    means = {name: (total / rows[name]).cpu().numpy() for name, total in sums.items()}
    return {name: mean[np.tril_indices(len(mean))].astype(np.float32) for name, mean in means.items()}


class Solver:
    """The sizes of an elastic model as linear maps of its full-width weights, in slicing and in training.

    Each width's map is computed once, from the moments alone; corrections from images are added. Without moments a size
    is the prefix. `like` gives device and dtype. `once`: solve for the weights directly in float64, which costs less
    than a map that is used once.
    """

    def __init__(self, elastic: Elastic, like: Tensor, *, once: bool = False):
        self.elastic, self.like, self.once = elastic, like, once
        self.scales = torch.from_numpy(elastic.norm_scales).to(like.device)
        self.corrections = {
            name: torch.from_numpy(array).to(like.device) for name, array in elastic.corrections.items()
        }
        self._map = lru_cache(512)(self._found)

    def state(self, weights: Mapping[str, Tensor], after: ModelShape) -> State:
        """Tensors of the size `after`; gradients flow back to the full-width `weights`."""
        shape, k = self.elastic.shape, after.embed_dim
        result = prefix_state(weights, shape, after, self.scales)
        if not self.elastic.moments:
            return result

        def solve(name: str, moment: str, kept: int, outputs: Tensor) -> None:
            """The rows `outputs` of a linear layer that reads the first channels of `moment`."""
            whole = torch.cat([weights[f"{name}.weight"], weights[f"{name}.bias"][:, None]], 1)[outputs]
            if self.once:
                across, inner = self._normal_equations(moment, kept)
                solution = torch.linalg.solve(inner, (whole @ across).T).T
            else:
                solution = whole @ self._map(moment, kept)
            result[f"{name}.weight"], result[f"{name}.bias"] = solution[:, :-1], solution[:, -1]

        stream = torch.arange(k)
        for b, (full, own) in enumerate(zip(shape.blocks, after.blocks, strict=True)):
            stem, heads = f"blocks.{b}", head_channels(full, own)
            three = torch.cat([heads + part * full.attention for part in range(3)])
            if k < shape.embed_dim:
                solve(f"{stem}.attn.qkv", f"normed.{2 * b}", k, three)
                for leaf in (f"{stem}.attn.qkv.weight", f"{stem}.attn.qkv.bias"):
                    result[leaf] = scaled_queries(result[leaf], full, own)
                hidden = torch.arange(own.ffn) + full.ffn * torch.arange(shape.structure.first_layers)[:, None]
                solve(f"{stem}.mlp.fc1", f"normed.{2 * b + 1}", k, hidden.flatten())
            if own.attention < full.attention:
                solve(f"{stem}.attn.proj", f"mixed.{b}", own.attention, stream)
            if own.ffn < full.ffn:
                solve(f"{stem}.mlp.fc2", f"hidden.{b}", own.ffn, stream)
        if k < shape.embed_dim:
            for last in last_readers(shape):
                rows = torch.arange(len(weights[f"{last}.weight"]))
                solve(last, f"normed.{2 * shape.depth}", k, rows)
        correct(result, shape, after, self.elastic.origin.ladder, self.corrections)
        return result

    def _found(self, moment: str, kept: int) -> Tensor:
        """The matrix (n, kept + 1) that maps [weight, bias] (…, n) of a full layer to one of `kept` inputs."""
        across, inner = self._normal_equations(moment, kept)
        return torch.linalg.solve(inner, across.T).T.to(self.like)

    def _normal_equations(self, moment: str, kept: int) -> tuple[Tensor, Tensor]:
        """Second moments of all inputs with the kept ones (n, kept + 1), and of the kept ones with ridge; float64."""
        kind, number = moment.split(".")
        n = moment_widths(self.elastic.shape)[moment]
        full = torch.from_numpy(_unpacked(self.elastic.moments[moment], n)).to(self.like.device)
        heads = self.elastic.shape.blocks[int(number)].num_heads if kind == "mixed" else 1
        channels = torch.arange(n - 1).unflatten(0, (heads, -1))[:, : kept // heads].flatten()
        chosen = torch.cat([channels, torch.tensor([n - 1])]).to(full.device)
        across, inner = full[:, chosen], full[chosen][:, chosen]
        if kind == "normed":  # a LayerNorm of fewer channels takes their mean away
            take = torch.eye(kept + 1).to(full)
            take[:kept, :kept] -= 1 / kept
            across, inner = across @ take, take @ inner @ take
        return across, inner + torch.diag(RIDGE * inner.diagonal())


def _unpacked(triangle: np.ndarray, n: int) -> np.ndarray:
    lower = np.zeros((n, n))
    lower[np.tril_indices(n)] = triangle
    return lower + np.tril(lower, -1).T
