"""Speed and trustworthiness of the scores.

python -m tests.benchmarks.scores agreement --images 1000   kl against fisher and refine on the demo
python -m tests.benchmarks.scores removal                   kl against an honest leave-one-out loop, DeiT-T shape
python -m tests.benchmarks.scores speed --images 1000       fisher against kl on the demo (kl on a sample, or --whole)
python -m tests.benchmarks.scores precision --images 200    bf16 and fp16 forward passes against float32, on the demo
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests.benchmarks.report import publish
from tests.support.tiny import TensorProxy
from upvit_core.data import draw_proxy, open_images
from upvit_core.importance.agreement import compare
from upvit_core.importance.criterion import Proxy, Report, kl_divergence, log_softmax, silent
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.refine import Refine
from upvit_core.importance.score import default_cuts
from upvit_core.models.adapter import Adapter
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.ratios import plan_uniform
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import deit_shape


@dataclass(frozen=True)
class Known(KL):
    """Exact scores that were computed before, of the same images."""

    record: ImportanceScores | None = None

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        assert self.record is not None
        if self.record.data_digest != proxy.digest:
            raise SystemExit(f"the exact scores are of {self.record.images} other images; take as many, seed 0")
        return self.record


def agreement(images: int, out: Path | None, save: Path | None, known: Path | None) -> None:
    """`kl` and the fast ways on the same images of the demo, one after another.

    With `known`, exact scores are read from that record; then times of kl and refine mean nothing.
    """
    loaded = load_model("demo")
    adapter = adapt(loaded.model, loaded.shape)
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    Fisher().attribute(adapter, draw_proxy(proxy.images, 64, 1))
    fast = {
        "fisher S=1": Fisher(1),
        "fisher S=2": Fisher(2),
        "fisher S=2, sites cancel": Fisher(2, site_error=0),
        "fisher S=2, plain derivative": Fisher(2, residual="derivative"),
        "fisher, all classes": Fisher(directions="all"),
        "fisher, one drawn label": Fisher(1, directions="labels"),
    }
    records = {name: criterion.attribute(adapter, proxy) for name, criterion in fast.items()}
    kl = KL() if known is None else Known(record=ImportanceScores.load(known))
    exact = kl.attribute(adapter, proxy)
    if save is not None:
        exact.with_values({}, model=loaded.name, model_digest=loaded.digest).save(save)
    records["refine"] = Refine(default_cuts(loaded.shape), kl=kl).attribute(adapter, proxy)
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
    """Attention and FFN channels at DeiT-T shape: cached block inputs against removing and running the whole model.

    As many channels of every block; times are CPU seconds of one thread, so that other work does not count.
    """
    torch.set_num_threads(1)
    shape = deit_shape("tiny")
    model = build_model(shape, seed=0).eval()
    adapter = adapt(model, shape)
    x = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    rows, worst = [], 0.0
    with torch.inference_mode():
        log_q = log_softmax(model(x))
        for component in ("attention", "ffn"):
            width = getattr(shape.blocks[0], component)
            chosen = {
                f"{component}.{b}": tuple(sorted(rng.choice(width, channels, replace=False).tolist()))
                for b in range(shape.depth)
            }
            scores, seconds = {}, {}
            for name, again in (("cached", False), ("released", True)):
                start = time.process_time()
                scores = {key: [_removed(model, key, c, x, log_q, again) for c in part] for key, part in chosen.items()}
                seconds[name] = time.process_time() - start
            start = time.process_time()
            record = KL(image_batch=images, channels=chosen).attribute(adapter, TensorProxy(x))
            seconds["kl"] = time.process_time() - start
            for key, part in chosen.items():
                worst = max(worst, *(abs(record.values[key][c] / scores[key][i] - 1) for i, c in enumerate(part)))
            rows.append(
                {
                    "component": component, "channels": channels * shape.depth, "kl, s": seconds["kl"],
                    "leave one out, teacher cached, s": seconds["cached"],
                    "kl is faster": seconds["cached"] / seconds["kl"],
                    "teacher each time, s": seconds["released"],
                    "kl is faster than that": seconds["released"] / seconds["kl"],
                }
            )  # fmt: skip
    publish("exact scores at DeiT-T shape", rows, out, images=images, largest_difference=worst, clock="CPU, one thread")


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


def speed(out: Path | None, images: int, whole: bool) -> None:
    """`fisher` (median of three) on all images of the demo against `kl`, in CPU seconds of one thread.

    Unless `whole`, kl is timed on the first 32 images and every fourth channel of each key; each channel of a key costs
    the same, so the time is scaled by channels and images. Setting up the image batch is scaled too (below 1 %).
    """
    torch.set_num_threads(1)
    loaded = load_model("demo")
    adapter = adapt(loaded.model, loaded.shape)
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    Fisher().attribute(adapter, proxy.part(0, 32))
    widths = expected_widths(loaded.shape)
    start = time.process_time()
    if whole:
        KL().attribute(adapter, proxy)
        exact = time.process_time() - start
    else:
        exact = 0.0
        for key, width in widths.items():
            start, channels = time.process_time(), tuple(range(0, width, 4))
            KL(channels={key: channels}).attribute(adapter, proxy.part(0, 32))
            exact += (time.process_time() - start) * width / len(channels) * images / 32
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        start = time.process_time()
        for part, _ in proxy.batches(32):
            adapter.logits(part)
        forward = time.process_time() - start
    for S in (1, 2):
        taken = []
        for _ in range(3):
            start = time.process_time()
            Fisher(S).attribute(adapter, proxy)
            taken.append(time.process_time() - start)
        seconds = median(taken)
        rows.append(
            {"criterion": f"fisher S={S}", "seconds": seconds, "forward passes": seconds / forward,
             "faster than kl": exact / seconds}
        )  # fmt: skip
    rows.append({"criterion": "kl", "seconds": exact, "forward passes": exact / forward, "faster than kl": 1.0})
    how = "kl whole" if whole else "kl on 32 images and every fourth channel, scaled"
    publish("fisher against kl on the demo", rows, out, images=images, clock="CPU, one thread", how=how)


def precision(out: Path | None, images: int) -> None:
    """Scores by bf16 and by fp16 forward passes against float32, on the demo."""
    loaded = load_model("demo")
    adapter = adapt(loaded.model, loaded.shape)
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    few = {key: tuple(range(0, width, 8)) for key, width in expected_widths(loaded.shape).items()}
    rows: list[dict[str, object]] = []
    for name, criterion in (("fisher", Fisher()), ("kl, every eighth channel", KL(channels=few))):
        full = criterion.attribute(adapter, proxy)
        for kind in ("bf16", "fp16"):
            half = replace(criterion, precision=kind).attribute(adapter, proxy)
            row: dict[str, object] = {"criterion": name, "precision": kind}
            for component in loaded.shape.components:
                keys = [key for key in full.values if key.split(".")[0] == component]
                chosen = {key: list(few[key]) if name != "fisher" else slice(None) for key in keys}
                pairs = [(full.values[key][at], half.values[key][at]) for key, at in chosen.items()]
                row[f"{component}, Spearman"] = float(np.mean([spearmanr(a, b)[0] for a, b in pairs]))
                row[f"{component}, median change"] = float(
                    np.median(np.concatenate([np.abs(b - a) / np.maximum(np.abs(a), 1e-12) for a, b in pairs]))
                )
            rows.append(row)
    publish("half precision against float32", rows, out, images=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agreement", "removal", "speed", "precision"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="speed: time kl on everything, some 40 minutes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--save", type=Path, help="where agreement writes the exact scores")
    parser.add_argument("--exact", type=Path, help="agreement: a record of exact scores to read in place of kl")
    arguments = parser.parse_args()
    if arguments.what == "agreement":
        agreement(arguments.images or 1000, arguments.out, arguments.save, arguments.exact)
    elif arguments.what == "removal":
        removal(arguments.out, arguments.channels, arguments.images or 8)
    elif arguments.what == "speed":
        speed(arguments.out, arguments.images or 1000, arguments.whole)
    else:
        precision(arguments.out, arguments.images or 200)


if __name__ == "__main__":
    main()
