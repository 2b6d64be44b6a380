"""`fisher` on models that its constant was not set on: a ViT trained on CIFAR-10, and one distilled from the demo.

python -m tests.benchmarks.second --data ../shared/data/cifar10.tar.gz --work work/second

Trains both (runs go on where they stopped), scores them exactly, and compares `fisher` with its steps left out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tests.benchmarks.pvt import CFG, carry_out, model_of
from tests.benchmarks.report import publish
from upvit_core.data import draw_proxy, open_images
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import LoadedModel, load_model, save_model
from upvit_core.planning.ratios import plan_uniform
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, ModelShape, deit_shape
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS

WAYS = {
    "fisher": Fisher(), "sites cancel": Fisher(site_error=0.0), "plain derivative": Fisher(residual="derivative"),
}  # fmt: skip


def on_cifar(data: str, work: Path, epochs: int) -> LoadedModel:
    """A ViT of the demo's widths with 8 heads, at 32 pixels in colour, trained from fresh weights."""
    store, fresh = RunStore(work / "runs"), work / "fresh"
    if not (fresh / "config.json").exists():
        blocks = (BlockShape(8, 96, 384),) * 6
        shape: ModelShape = replace(
            deit_shape("tiny"), name="ViT on CIFAR-10", embed_dim=96, blocks=blocks, img_size=(32, 32),
            patch_size=(4, 4), num_classes=10,
        )  # fmt: skip
        images = open_images(data, "train", pretrained_cfg={**CFG, "input_size": (3, 32, 32)}, num_classes=10)
        save_model(
            build_model(shape, seed=0), fresh, shape=shape, pretrained_cfg=CFG, name=shape.name,
            class_names=images.class_names,
        )  # fmt: skip
    settings = FINETUNE_PRESETS["demo"].model_copy(update={"batch_size": 128, "lr": 1e-3, "eval_images": 2000})
    spec = RunSpec(kind="finetune", name="cifar", student=str(fresh), data=data, epochs=epochs, settings=settings,
                   device="cpu")  # fmt: skip
    rows = carry_out(store, spec)
    print(f"trained: {rows[-1]['top1']:.2f} % of the test images", flush=True)
    return load_model(model_of(store, "cifar"))


def from_demo(work: Path) -> LoadedModel:
    """The demo cut to half of every component by its exact scores, and distilled for two epochs."""
    store = RunStore(work / "runs")
    scores = ImportanceScores.load(Path("assets/demo/scores.safetensors"))
    plan = plan_uniform(scores, residual=0.5, attention=0.5, ffn=0.5)
    spec = RunSpec(name="half", teacher="demo", data="demo", plan=plan.model_dump(mode="json"), epochs=2,
                   settings=PRESETS["demo"], device="cpu")  # fmt: skip
    rows = carry_out(store, spec)
    print(f"distilled: {rows[-1]['top1']:.2f} %", flush=True)
    return load_model(model_of(store, "half"))


def compare(loaded: LoadedModel, data: str, images: int, path: Path) -> list[dict[str, Any]]:
    """Spearman of each way with exact scores of the residual, and the channels kept alike at 50 % and 75 %."""
    adapter = adapt(loaded.model, loaded.shape)
    source = open_images(data, "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes)
    proxy = draw_proxy(source, images, 0)
    if not path.exists():
        only = {"residual": tuple(range(loaded.shape.embed_dim))}
        KL(channels=only, journal=path.with_suffix(".jsonl")).attribute(adapter, proxy).save(path)
    exact = ImportanceScores.load(path).residual
    rows = []
    for name, way in WAYS.items():
        found = way.attribute(adapter, proxy)
        row = {"way": name, "residual, Spearman": float(spearmanr(found.residual, exact)[0])}
        for ratio in (0.5, 0.75):
            keep = round(len(exact) * (1 - ratio))
            kept = [set(np.argsort(-values)[:keep].tolist()) for values in (found.residual, exact)]
            row[f"kept alike at {ratio:.0%}"] = f"{len(kept[0] & kept[1])} of {keep}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("work/second"))
    parser.add_argument("--epochs", type=int, default=5, help="on CIFAR-10")
    parser.add_argument("--images", type=int, default=300, help="scored")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    every = []
    for name, loaded, data in (
        ("half the demo", from_demo(arguments.work), "demo"),
        ("ViT on CIFAR-10", on_cifar(arguments.data, arguments.work, arguments.epochs), arguments.data),
    ):
        path = arguments.work / f"kl-{loaded.digest[:12]}-{arguments.images}.safetensors"
        every += [{"model": name, **row} for row in compare(loaded, data, arguments.images, path)]
    publish("fisher's residual on other models", every, arguments.out, images=arguments.images)


if __name__ == "__main__":
    main()
