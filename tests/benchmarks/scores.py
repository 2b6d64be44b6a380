"""Speed and trustworthiness of the scores.

python -m tests.benchmarks.scores agreement --images 1000   kl against fisher and refine on the demo
python -m tests.benchmarks.scores removal                   kl against an honest leave-one-out loop, DeiT-T shape
python -m tests.benchmarks.scores cost                      fisher against one forward pass, DeiT-T, -S, -B; memory
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests.benchmarks.report import publish
from tests.tiny import TensorProxy
from upvit_core.data import draw_proxy, open_images
from upvit_core.importance.agreement import compare
from upvit_core.importance.criterion import kl_divergence, log_softmax
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.refine import Refine
from upvit_core.importance.score import default_cuts
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.adapt import adapt
from upvit_core.models.build import build_model
from upvit_core.models.checkpoint import load_model
from upvit_core.models.shape import deit_shape
from upvit_core.planning.select import plan_uniform


def agreement(images: int, out: Path | None, save: Path | None) -> None:
    """`kl` and the fast ways on the same images of the demo, one after another."""
    loaded = load_model("demo")
    adapter = adapt(loaded.model, loaded.shape)
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    Fisher().attribute(adapter, draw_proxy(proxy.images, 64, 1))
    fast = {
        "fisher S=1": Fisher(1),
        "fisher S=2": Fisher(2),
        "fisher S=2, plain derivative": Fisher(2, residual="derivative"),
        "fisher, all classes": Fisher(directions="all"),
        "fisher, one drawn label": Fisher(1, directions="labels"),
    }
    records = {name: criterion.attribute(adapter, proxy) for name, criterion in fast.items()}
    exact = KL().attribute(adapter, proxy)
    if save is not None:
        exact.with_values({}, model=loaded.name, model_digest=loaded.digest).save(save)
    records["refine"] = Refine(default_cuts(loaded.shape)).attribute(adapter, proxy)
    rows = [_row(name, record, exact) for name, record in records.items()]
    rows.append(_row("kl", exact, exact))
    publish("agreement with kl on the demo", rows, out, images=images)


def _row(name: str, record: ImportanceScores, exact: ImportanceScores) -> dict[str, object]:
    row: dict[str, object] = {"criterion": name, "seconds": record.seconds, "faster": exact.seconds / record.seconds}
    for component in ("residual", "attention", "ffn"):
        keys = [key for key in exact.values if key.startswith(component)]
        correlations = [float(spearmanr(record.values[key], exact.values[key])[0]) for key in keys]
        row[component] = float(np.mean(correlations))
        if len(keys) > 1:
            row[f"{component}, lowest block"] = min(correlations)
    for ratio in (0.5, 0.75):
        plans = [plan_uniform(s, residual=ratio, attention=ratio, ffn=ratio, snap=True) for s in (exact, record)]
        parts = compare(exact, record, *plans)
        sizes = [len(plans[0].residual.keep)] + [
            sum(len(getattr(b, c).keep) for b in plans[0].blocks) for c in ("attention", "ffn")
        ]
        same = sum(part.overlap * size for part, size in zip(parts, sizes, strict=True))
        row[f"same kept at {ratio:.0%}"] = f"{same / sum(sizes):.2%}"
    row["exact passes"] = f"{record.notes.get('exact_share', 1.0 if name == 'kl' else 0.0):.0%}"
    return row


def removal(out: Path | None, channels: int, images: int) -> None:
    """Attention and FFN channels at DeiT-T shape: cached block inputs against removing and running the whole model."""
    shape = deit_shape("tiny")
    model = build_model(shape, seed=0).eval()
    x = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    chosen = {
        f"{c}.{b}": tuple(sorted(rng.choice(width, channels, replace=False).tolist()))
        for b in range(shape.depth)
        for c, width in (("attention", 192), ("ffn", 768))
    }
    with torch.inference_mode():
        log_q = log_softmax(model(x))
        start = time.perf_counter()
        slow = {key: [_removed(model, key, c, x, log_q, False) for c in part] for key, part in chosen.items()}
        cached = time.perf_counter() - start
        start = time.perf_counter()
        for key, part in chosen.items():
            for c in part:
                _removed(model, key, c, x, log_q, True)
        released = time.perf_counter() - start
    record = KL(image_batch=images, channels=chosen).attribute(adapt(model, shape), TensorProxy(x))
    worst = max(
        abs(record.values[key][c] / slow[key][i] - 1) for key, part in chosen.items() for i, c in enumerate(part)
    )
    rows = [
        {"way": "leave one out, teacher logits cached", "seconds": cached, "kl is faster": cached / record.seconds},
        {
            "way": "released procedure, teacher each time",
            "seconds": released,
            "kl is faster": released / record.seconds,
        },
        {"way": "kl", "seconds": record.seconds, "kl is faster": 1.0},
    ]
    publish("exact scores at DeiT-T shape", rows, out, channels=channels * 24, images=images, largest_difference=worst)


def _removed(model: nn.Module, key: str, c: int, x: Tensor, log_q: Tensor, teacher_again: bool) -> float:
    component, block = key.split(".")
    thin = copy.copy(model)
    thin._modules = dict(model._modules)
    thin.blocks = nn.Sequential(*model.blocks)
    blk = copy.deepcopy(model.blocks[int(block)])
    if component == "ffn":
        keep = [i for i in range(blk.mlp.fc1.out_features) if i != c]
        blk.mlp.fc1.weight = nn.Parameter(blk.mlp.fc1.weight[keep])
        blk.mlp.fc1.bias = nn.Parameter(blk.mlp.fc1.bias[keep])
        blk.mlp.fc2.weight = nn.Parameter(blk.mlp.fc2.weight[:, keep])
    else:
        width = blk.attn.proj.in_features
        for part in range(3):
            blk.attn.qkv.weight[part * width + c] = 0
            blk.attn.qkv.bias[part * width + c] = 0
    thin.blocks[int(block)] = blk
    if teacher_again:
        log_q = log_softmax(model(x))
    return float(kl_divergence(log_q, thin(x)).sum())


def cost(out: Path | None, images: int) -> None:
    """Each shape in a process of its own, so that its peak memory is its own."""
    rows = []
    for variant in ("tiny", "small", "base"):
        for S in (1, 2):
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.scores",
                "one-cost",
                "--variant",
                variant,
                "--directions",
                str(S),
                "--images",
                str(images),
            ]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    publish("fisher at DeiT shapes, batch 8", rows, out, images=images)


def one_cost(variant: str, directions: int, images: int) -> None:
    import resource

    shape = deit_shape(variant)  # type: ignore[arg-type]
    adapter = adapt(build_model(shape, seed=0).eval(), shape)
    x = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        adapter.logits(x[:8])
        start = time.perf_counter()
        for part in x.split(8):
            adapter.logits(part)
        forward = time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record = Fisher(directions, batch_size=8).attribute(adapter, TensorProxy(x))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {
                "model": f"DeiT-{variant[0].upper()}", "S": directions, "forward ms/image": 1e3 * forward / images,
                "fisher ms/image": 1e3 * record.seconds / images, "forward passes": record.seconds / forward,
                "peak GiB": peak, "of it before scoring": before,
                "2,000 images": f"{record.seconds / images * 2000 / 60:.1f} min",
            }
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agreement", "removal", "cost", "one-cost"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--directions", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--save", type=Path, help="where agreement writes the exact scores")
    arguments = parser.parse_args()
    if arguments.what == "agreement":
        agreement(arguments.images or 1000, arguments.out, arguments.save)
    elif arguments.what == "removal":
        removal(arguments.out, arguments.channels, arguments.images or 8)
    elif arguments.what == "cost":
        cost(arguments.out, arguments.images or 16)
    else:
        one_cost(arguments.variant, arguments.directions, arguments.images or 16)


if __name__ == "__main__":
    main()
