"""How the cost and the memory of scoring grow with the model: measured, fitted, and carried on paper to larger ones.

python -m tests.benchmarks.growth            measure DeiT-T, -S, -B (a process each), fit, and extrapolate
python -m tests.benchmarks.growth --from F   fit and extrapolate what an earlier run wrote with --out F

Times are CPU seconds of one thread, memory is what scoring 8 images adds to the process, from its peak. With M the MACs
of one image, E = L·N·D the size of its stream over L blocks, S the directions, B the images at once:

fisher, seconds an image:  a·M + b·M·S + c·E·(1 + S)        memory, bytes: B·E·(d + e·S)
kl, seconds a channel and image:  g·(MACs of what follows) + h·(the stream over the blocks that follow)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from tests.benchmarks.report import publish
from tests.support.tiny import TensorProxy
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL, _suffix_macs
from upvit_core.models.build import adapt, build_model
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.shape import BlockShape, ModelShape, deit_shape

BATCH = 8
IMAGES = 2000
GPU_GIB, GPU_FLOPS = 80, 100e12
"""A GPU on paper: memory, and the speed that it is assumed, not measured, to sustain."""


def vit(name: str, dim: int, depth: int, heads: int, ffn: int, patch: int) -> ModelShape:
    return ModelShape(name, dim, (BlockShape(heads, dim, ffn),) * depth, (224, 224), (patch, patch), 3, 1000)


LARGER = {
    "ViT-L/16": vit("vit_large_patch16_224", 1024, 24, 16, 4096, 16),
    "ViT-H/14": vit("vit_huge_patch14_224", 1280, 32, 16, 5120, 14),
    "ViT-g/14": vit("vit_giant_patch14_224", 1408, 40, 16, 6144, 14),
}


def measure_one(variant: str) -> dict[str, Any]:
    """Everything about one shape, in this process."""
    torch.set_num_threads(1)
    shape = deit_shape(variant)  # type: ignore[arg-type]
    adapter = adapt(build_model(shape, seed=0).eval(), shape)
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    with torch.inference_mode():
        adapter.logits(x)
        seconds["forward"] = _least(lambda: adapter.logits(x)) / BATCH
    before = _peak()
    for S in (1, 2):
        criterion = Fisher(S, batch_size=BATCH)
        seconds[f"fisher {S}"] = _least(lambda c=criterion: c.attribute(adapter, TensorProxy(x))) / BATCH
        memory[f"fisher {S}"] = _peak() - before
    few, last = TensorProxy(x[:2]), shape.depth - 1
    setup = _least(lambda: KL(channels={"ffn.11": (0,)}).attribute(adapter, few))
    for key in ("residual", "attention.0", f"attention.{last // 2}", "ffn.0", f"ffn.{last // 2}"):
        whole = _least(lambda k=key: KL(channels={k: (0, 1)}).attribute(adapter, few))
        seconds[f"kl {key}"] = max(whole - setup, 0.0) / 4
    return {"variant": variant, "seconds": seconds, "memory": memory, "before": before, "peak": _peak()}


def _least(work: Callable[[], object], times: int = 3) -> float:
    """Least CPU seconds of a few, since other work on the machine only ever adds."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def features(shape: ModelShape, S: int) -> tuple[list[float], list[float]]:
    """What the cost of fisher and its memory are sums of, for one image."""
    M, E = float(count_macs(shape)), float(shape.depth * shape.num_tokens * shape.embed_dim)
    return [M, M * S, E * (1 + S)], [E, E * S]


def kl_features(shape: ModelShape, key: str) -> list[float]:
    first = int(key.split(".")[1]) if "." in key else 0
    return [_suffix_macs(shape, key), float((shape.depth - first) * shape.num_tokens * shape.embed_dim)]


def fit(rows: list[list[float]], seen: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative coefficients of least relative error, and prediction / measurement - 1 of every point."""
    scaled = np.asarray(rows) / np.asarray(seen)[:, None]
    size = scaled.max(0)
    coefficients, _ = nnls(scaled / size, np.ones(len(seen)))
    return coefficients / size, scaled @ (coefficients / size) - 1


def report(measured: list[dict[str, Any]], out: Path | None) -> None:
    shapes = {m["variant"]: deit_shape(m["variant"]) for m in measured}
    points = [(m, shapes[m["variant"]], S) for m in measured for S in (1, 2)]
    cost, cost_error = fit(
        [features(shape, S)[0] for _, shape, S in points], [m["seconds"][f"fisher {S}"] for m, _, S in points]
    )
    size, size_error = fit(
        [[BATCH * f for f in features(shape, S)[1]] for _, shape, S in points],
        [m["memory"][f"fisher {S}"] for m, _, S in points],
    )
    rows: list[dict[str, Any]] = []
    for (m, _, S), wrong, off in zip(points, cost_error, size_error, strict=True):
        seconds = m["seconds"]
        rows.append(
            {
                "model": f"DeiT-{m['variant'][0].upper()}", "S": S, "forward, s/image": seconds["forward"],
                "fisher, s/image": seconds[f"fisher {S}"],
                "forward passes": seconds[f"fisher {S}"] / seconds["forward"],
                "formula": f"{wrong:+.1%}", "GiB added by 8 images": m["memory"][f"fisher {S}"] / 2**30,
                "formula, memory": f"{off:+.1%}", "peak of the process, GiB": m["peak"] / 2**30,
                "2,000 images, min": seconds[f"fisher {S}"] * IMAGES / 60,
            }
        )  # fmt: skip
    publish("fisher at DeiT shapes", rows, out, batch=BATCH, clock="CPU, one thread")
    keys = [(m, shapes[m["variant"]], name[3:]) for m in measured for name in m["seconds"] if name.startswith("kl ")]
    exact, exact_error = fit(
        [kl_features(shape, key) for _, shape, key in keys], [m["seconds"][f"kl {key}"] for m, _, key in keys]
    )
    publish(
        "kl, a channel of one image",
        [
            {"model": f"DeiT-{m['variant'][0].upper()}", "key": key, "ms": 1e3 * m["seconds"][f"kl {key}"],
             "formula": f"{wrong:+.1%}"} for (m, _, key), wrong in zip(keys, exact_error, strict=True)
        ], None, clock="CPU, one thread",
    )  # fmt: skip
    print(f"fisher, s/image = {cost[0]:.3g}·M + {cost[1]:.3g}·M·S + {cost[2]:.3g}·E·(1+S)")
    print(f"fisher, bytes added = B·E·({size[0]:.3g} + {size[1]:.3g}·S)")
    print(f"kl, s/channel and image = {exact[0]:.3g}·(MACs that follow) + {exact[1]:.3g}·(stream that follows)\n")
    known = {f"DeiT-{m['variant'][0].upper()}": shapes[m["variant"]] for m in measured}
    paper = []
    for name, shape in {**known, **LARGER}.items():
        per_image, bytes_added = features(shape, 2)
        whole = sum(g.width * float(np.dot(exact, kl_features(shape, g.key))) for g in shape.groups)
        macs = sum(g.width * _suffix_macs(shape, g.key) for g in shape.groups) * IMAGES
        gib = (4 * count_parameters(shape) + BATCH * float(np.dot(size, bytes_added))) / 2**30
        passes = float(np.dot(cost, per_image)) / float(np.dot(cost, features(known["DeiT-B"], 2)[0]))
        paper.append(
            {
                "model": name, "parameters, M": count_parameters(shape) / 1e6, "GMACs": count_macs(shape) / 1e9,
                "fisher S=2, 2,000 images, CPU h": float(np.dot(cost, per_image)) * IMAGES / 3600,
                "in DeiT-B": passes, "GiB at 8 images": gib, "GPUs for the memory": int(np.ceil(gib / GPU_GIB)),
                "kl, 2,000 images, CPU days": whole * IMAGES / 86400,
                "kl, GPU days": 2 * macs / GPU_FLOPS / 86400,
                "GPUs for kl in a day": int(np.ceil(2 * macs / GPU_FLOPS / 86400)),
            }
        )  # fmt: skip
    gpu = f"{GPU_GIB} GiB, {GPU_FLOPS / 1e12:.0f} TFLOP/s assumed"
    publish("carried on paper", paper, None, gpu=gpu, clock="CPU, one thread")
    worst = {"fisher": cost_error, "memory": size_error, "kl": exact_error}
    print("largest error of each formula: " + ", ".join(f"{k} {np.abs(e).max():.1%}" for k, e in worst.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["tiny", "small", "base"])
    parser.add_argument("--from", dest="earlier", type=Path)
    parser.add_argument("--out", type=Path, help="where the measurements are kept, JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(arguments.one)))
        return
    if arguments.earlier:
        measured = json.loads(arguments.earlier.read_text())
    else:
        command = [sys.executable, "-m", "tests.benchmarks.growth", "--one"]
        runs = [subprocess.run([*command, v], check=True, stdout=subprocess.PIPE) for v in ("tiny", "small", "base")]
        measured = [json.loads(run.stdout) for run in runs]
        if arguments.out:
            arguments.out.write_text(json.dumps(measured))
    report(measured, None)


if __name__ == "__main__":
    main()
