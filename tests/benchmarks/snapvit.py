"""SnapViT's criterion beside ours on the demo without its classifier: FFN 45 % and heads 30 % removed, untrained.

SnapViT (Simoncini et al., "Elastic ViTs from Pretrained Models without Retraining", NeurIPS 2025, arXiv 2510.17700) is
rebuilt here from the paper's text, with the settings of the authors' published job for DINO. An FFN channel's local
score is the mean squared gradient of its rows of fc1, a head's that of its value rows, under DINO's loss (2 global and
10 local crops, cross-entropy of softmaxes of normalised features without temperature) on 1,000 images. It is taken from
each image's own gradient, as the paper writes, or from the gradient of all (`summed`), as the published code does. The
global part, one factor for each FFN and each head, is sought by xNES (Glasmachers et al., GECCO 2010) from a line from
1.2 to 0.8 over depth: it maximises the mean cosine of 1,000 images' features at FFN 15, 35, 55, 65 % and heads 0, 20,
40, 50 %. A block keeps at least 20 % of its heads and 5 % of its FFN. Their correction of fc2 and proj is solved as a
ridge regression on the original's inputs and outputs, with their damping of 1 %.

`python -m tests.benchmarks.snapvit --evaluations 0 50` prints the table.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomResizedCrop

from tests.benchmarks.report import publish
from upvit_core import api
from upvit_core.data import draw_proxy
from upvit_core.evaluation import evaluate, readout_of
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.models.images import images_for
from upvit_core.planning.ratios import plan_uniform
from upvit_core.records.ratios import Ratios

FFN, HEADS = 0.45, 0.3
TRIED = ((0.15, 0.0), (0.35, 0.2), (0.55, 0.4), (0.65, 0.5))
LEAST_FFN, LEAST_HEADS, DAMPING = 0.05, 0.2, 0.01
Kept = tuple[list[Tensor], list[Tensor]]
"""By block which hidden channels and which heads stay, as booleans."""


def bare_demo() -> LoadedModel:
    """The demo without its classifier."""
    demo = load_model("demo")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bare.pth"
        torch.save({name: t for name, t in demo.model.state_dict().items() if not name.startswith("head")}, path)
        mean, std = demo.pretrained_cfg["mean"], demo.pretrained_cfg["std"]
        return load_model(path, num_heads=demo.shape.num_heads, mean=mean, std=std)


def local_scores(model: Any, images: Tensor, *, summed: bool) -> tuple[Tensor, Tensor]:
    """Mean squared gradients of FFN channels (blocks, H) and of heads (blocks, heads)."""
    side, heads = images.shape[-1], model.blocks[0].attn.num_heads
    wide, close = (
        RandomResizedCrop(side, (0.25, 1.0), antialias=True),
        RandomResizedCrop(side, (0.05, 0.25), antialias=True),
    )
    ffns, values = [block.mlp.fc1.weight for block in model.blocks], [block.attn.qkv.weight for block in model.blocks]
    found = [torch.zeros_like(weight) for weight in (*ffns, *values)]
    for image in images:
        views = torch.stack([crop(image) for crop, count in ((wide, 2), (close, 10)) for _ in range(count)])
        features = F.normalize(model(views), dim=-1)
        targets = features[:2].detach().softmax(-1)
        crosses = -targets @ features.log_softmax(-1).T  # (2, 12)
        loss = crosses.sum() - crosses[:, :2].diagonal().sum()
        for total, gradient in zip(found, torch.autograd.grad(loss, [*ffns, *values]), strict=True):
            total += gradient if summed else gradient.square()
    squares = [total.square() if summed else total for total in found]
    ffn = torch.stack([each.mean(1) for each in squares[: len(ffns)]])
    return ffn, torch.stack([each.chunk(3)[2].unflatten(0, (heads, -1)).mean((1, 2)) for each in squares[len(ffns) :]])


def kept_by(scores: Tensor, share: float, least: float) -> list[Tensor]:
    """The best of all blocks together, after the best of every block."""
    safe = scores.clone()
    safe.scatter_(1, scores.argsort(1, descending=True)[:, : int(least * scores.shape[1])], torch.inf)
    kept = torch.ones(scores.numel(), dtype=torch.bool)
    kept[safe.flatten().argsort()[: int(scores.numel() * share)]] = False
    return list(kept.unflatten(0, scores.shape))


def masked(model: Any, kept: Kept) -> Any:
    """A copy whose removed channels and heads write nothing, which computes what the thinner model does."""
    thin = copy.deepcopy(model)
    for block, ffn, heads in zip(thin.blocks, *kept, strict=True):
        block.mlp.fc2.weight.data *= ffn
        block.attn.proj.weight.data *= heads.repeat_interleave(block.attn.head_dim)
    return thin


@torch.no_grad()
def corrected(model: Any, kept: Kept, images: Tensor) -> Any:
    """`masked` with fc2 and proj fitted to the original's outputs from the original's inputs."""
    thin = masked(model, kept)
    for b, (ffn, heads) in enumerate(zip(*kept, strict=True)):
        for name, stays in (("mlp.fc2", ffn), ("attn.proj", heads.repeat_interleave(model.blocks[b].attn.head_dim))):
            layer, seen = model.blocks[b].get_submodule(name), []
            handle = layer.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].flatten(0, -2)))
            model(images)
            handle.remove()
            gram = (seen[0].T @ seen[0]).double()
            inner = gram[stays][:, stays] + DAMPING * gram.diagonal().mean() * torch.eye(int(stays.sum()))
            weight = torch.linalg.solve(inner, gram[stays] @ layer.weight.double().T).T
            thin.blocks[b].get_submodule(name).weight.data[:, stays] = weight.float()
    return thin


def xnes(fitness: Callable[[np.ndarray], float], mean: np.ndarray, evaluations: int, seed: int) -> np.ndarray:
    """The best point found by exponential natural evolution strategies, with the usual rates of the paper."""
    n, random = len(mean), np.random.default_rng(seed)
    count = 4 + int(3 * np.log(n))
    weights = np.maximum(0, np.log(count / 2 + 1) - np.log(np.arange(1, count + 1)))
    weights = weights / weights.sum() - 1 / count
    spread, rate = np.eye(n), 0.6 * (3 + np.log(n)) / (n * np.sqrt(n))
    best, least = mean, fitness(mean)
    for _ in range(evaluations // count):
        steps = random.standard_normal((count, n))
        losses = np.array([fitness(mean + spread @ step) for step in steps])
        order = losses.argsort()
        if losses[order[0]] < least:
            best, least = mean + spread @ steps[order[0]], losses[order[0]]
        ranked = steps[order]
        mean = mean + spread @ (weights @ ranked)
        change = np.einsum("k,ki,kj->ij", weights, ranked, ranked)
        values, vectors = np.linalg.eigh(rate / 2 * change)
        spread = spread @ (vectors * np.exp(values)) @ vectors.T
    return best


def snapvit(model: Any, images: Tensor, evaluations: int, *, summed: bool, seed: int) -> Kept:
    """The channels that SnapViT keeps at `FFN` and `HEADS`."""
    ffn, heads = local_scores(model, images, summed=summed)
    depth = len(ffn)
    with torch.no_grad():
        features = model(images)

    def kept(point: np.ndarray, shares: tuple[float, float]) -> Kept:
        factors = torch.from_numpy(np.abs(point)).float()
        scaled = ffn * factors[:depth, None], heads * factors[depth:].unflatten(0, heads.shape)
        return kept_by(scaled[0], shares[0], LEAST_FFN), kept_by(scaled[1], shares[1], LEAST_HEADS)

    @torch.no_grad()
    def fitness(point: np.ndarray) -> float:
        cuts = [masked(model, kept(point, shares))(images) for shares in TRIED]
        return float(np.mean([1 - F.cosine_similarity(cut, features).mean().item() for cut in cuts]))

    line = np.linspace(1.2, 0.8, depth)
    start = np.concatenate([line, line.repeat(heads.shape[1])])
    return kept(xnes(fitness, start, evaluations, seed) if evaluations else start, (FFN, HEADS))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.snapvit", description=__doc__)
    parser.add_argument("--evaluations", type=int, nargs="*", default=[50])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loaded = bare_demo()
    train = images_for(loaded, "demo", "train", labelled=False, apart=True)
    test = images_for(loaded, "demo", "val")
    readout = readout_of(loaded.shape, images_for(loaded, "demo", "train", apart=True), test)
    whole = evaluate(loaded.model, test.batches(250), readout=readout).top1
    rows: list[dict[str, Any]] = [
        {"way": "the demo's features", "k-NN top-1, %": whole, "lost, points": 0.0, "cosine": 1.0, "s": 0}
    ]

    def add(way: str, student: nn.Module, seconds: float) -> None:
        found = evaluate(student, test.batches(250), teacher=loaded.model, readout=readout)
        rows.append(
            {
                "way": way,
                "k-NN top-1, %": found.top1,
                "lost, points": whole - found.top1,
                "cosine": found.cosine,
                "s": round(seconds),
            }
        )
        print(rows[-1], flush=True)

    for seed in asked.seeds:
        torch.manual_seed(seed)
        images = torch.cat([x for x, _ in draw_proxy(train, 1000, seed).batches(250)])
        for evaluations in asked.evaluations:
            for summed in (False, True):
                began = time.perf_counter()
                kept = snapvit(loaded.model, images, evaluations, summed=summed, seed=seed)
                seconds = time.perf_counter() - began
                name = f"SnapViT, {'one' if summed else 'own'} gradient, {evaluations} evaluations, seed {seed}"
                add(name, masked(loaded.model, kept), seconds)
                add(f"{name}, corrected", corrected(loaded.model, kept, images), seconds)
        for basis in ("channels", "directions"):
            began = time.perf_counter()
            scores = api.score(loaded, train, basis=basis, images=1000, seed=seed)
            plan = plan_uniform(scores, Ratios(0, HEADS, FFN), basis=basis, snap=True)
            for repair in (False, True):
                made = api.prune(loaded, plan, data=train, repair=repair, images=1000, seed=seed)
                add(f"fisher, {basis}{', repaired' * repair}, seed {seed}", made.model, time.perf_counter() - began)
    publish("snapvit", rows, None, ffn=FFN, heads=HEADS)


if __name__ == "__main__":
    main()
