"""The demo teacher: a DeiT-style ViT trained from scratch on all 60,000 Fashion-MNIST images.

Architecture: timm's `deit_tiny_patch16_224` with 28x28 grey images, patches of 4, width 96, 6 blocks, 6 heads.
Recipe: AdamW, one warm-up epoch then cosine, weight averaging (timm's EMA), horizontal flips, shifts of up to two
pixels. In the first epochs half of the patches are dropped (timm's `patch_drop_rate`; Liu et al., "PatchDropout",
WACV 2023), which halves their cost; the last epochs see whole images.
"""

import gzip
import json
import platform
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from upvit_core.atomic import replaced
from upvit_core.data import open_images
from upvit_core.errors import DataError
from upvit_core.evaluation import evaluate
from upvit_core.importance.criterion import Report, silent
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import load_model, save_model, shape_of
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.training.batches import shift_and_flip as move_pixels

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, STD = 0.286, 0.353
ARCHITECTURE = "deit_tiny_patch16_224"
SIZES: dict[str, Any] = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10}
SIZES |= {"embed_dim": 96, "depth": 6, "num_heads": 6}


@dataclass(frozen=True)
class DemoRecipe:
    """Settings of the demo's training; `dropped_epochs` of the `epochs` see half of the patches."""

    epochs: int = 24
    dropped_epochs: int = 18
    patch_drop_rate: float = 0.5
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    ema_decay: float = 0.9995
    max_shift: int = 2
    seed: int = 0


def read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes, the form in which Fashion-MNIST is published."""
    try:
        raw = gzip.decompress(path.read_bytes())
        _, kind, ndim = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{ndim}I", raw, 4)
        if kind != 8:
            raise ValueError(f"element type {kind}, expected 8 (unsigned byte)")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
    except (OSError, ValueError, struct.error, EOFError) as error:
        raise DataError(
            f"{path} is not a readable IDX file ({error}); install Debian's package dataset-fashion-mnist or give the "
            "folder that holds train-images-idx3-ubyte.gz and its three companions."
        ) from error


def load_full_data(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """All images (N, 1, 28, 28) uint8 and labels (N,) of `split`, `train` (60,000) or `test` (10,000)."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = torch.from_numpy(read_idx(root / f"{stem}-images-idx3-ubyte.gz")).unsqueeze(1)
    labels = torch.from_numpy(read_idx(root / f"{stem}-labels-idx1-ubyte.gz")).long()
    return images, labels


def normalise(images: Tensor) -> Tensor:
    """Bytes (N, 1, H, W) to zero-mean, unit-variance float32."""
    return (images.float() / 255 - MEAN) / STD


def shift_and_flip(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Flip half of the images and shift each by up to `max_shift` pixels; the border is filled with zeros."""
    shifts = torch.randint(0, 2 * max_shift + 1, (2, len(images), 1), generator=generator)
    flips = torch.rand(len(images), 1, generator=generator) < 0.5
    return move_pixels(images, shifts[..., 0].T, flips[:, 0], max_shift)


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of images, in percent, whose likeliest class is the label."""
    model.eval()
    right = sum(
        int((model(normalise(x)).argmax(1) == y).sum())
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    return 100 * right / len(labels)


def build(patch_drop_rate: float = 0.0) -> nn.Module:
    """The demo's architecture with fresh weights (timm's `jax` initialisation)."""
    model: nn.Module = timm.create_model(ARCHITECTURE, weight_init="jax", patch_drop_rate=patch_drop_rate, **SIZES)
    return model


def train(
    data_root: Path,
    work_dir: Path,
    recipe: DemoRecipe = DemoRecipe(),
    *,
    compile_model: bool = False,
    report: Callable[[dict[str, float]], None] = lambda row: print(json.dumps(row), flush=True),
) -> nn.Module:
    """Train the demo teacher, or go on from the last epoch saved in `work_dir`; returns the averaged weights' model.

    `report` receives one row an epoch: epoch, loss (mean cross-entropy, nats), top1 and ema_top1 (percent of the
    10,000 test images), seconds.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    images, labels = load_full_data(data_root, "train")
    test_set = load_full_data(data_root, "test")
    training = _Training(images, labels, recipe, compile_model=compile_model)
    checkpoint = work_dir / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    while training.epoch < recipe.epochs:
        loss = training.run_epoch()
        training.save(checkpoint)
        row = {"epoch": training.epoch, "loss": round(loss, 4), "top1": top1(training.model, *test_set)}
        report(row | {"ema_top1": top1(training.ema.module, *test_set), "seconds": round(training.seconds, 1)})
    averaged: nn.Module = training.ema.module
    facts = {
        "recipe": asdict(recipe),
        "seconds": round(training.seconds, 1),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "top1": top1(averaged, *test_set),
        "test_images": len(test_set[1]),
    }
    (work_dir / "training.json").write_text(json.dumps(facts, indent=1))
    return averaged.eval()


class _Training:
    """One training in progress; `dropped`, which drops patches, and `model` hold the same tensors."""

    def __init__(self, images: Tensor, labels: Tensor, recipe: DemoRecipe, *, compile_model: bool):
        self.images, self.labels, self.recipe, self.compile_model = images, labels, recipe, compile_model
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.dropped, self.model = build(patch_drop_rate=recipe.patch_drop_rate), build()
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True)
        self.steps = len(images) // recipe.batch_size
        self.optimizer = create_optimizer_v2(self.dropped, "adamw", recipe.lr, recipe.weight_decay)
        for name, parameter in self.dropped.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, parameter)
        self.ema.set(self.model)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.epochs * self.steps,
            lr_min=1e-5,
            t_in_epochs=False,
            warmup_prefix=True,
            warmup_t=recipe.warmup_epochs * self.steps,
            warmup_lr_init=1e-6,
        )
        self.epoch, self.seconds = 0, 0.0

    def load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]

    def save(self, checkpoint: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        with replaced(checkpoint) as temporary:
            torch.save(state, temporary)

    def run_epoch(self) -> float:
        """Train for the next epoch; returns its mean loss."""
        start, recipe = time.perf_counter(), self.recipe
        network = self.dropped if self.epoch < recipe.dropped_epochs else self.model
        network.train()
        forward = torch.compile(network) if self.compile_model else network
        order = torch.randperm(len(self.images), generator=self.generator)
        total = 0.0
        for step in range(self.steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            batch = normalise(shift_and_flip(self.images[chosen], recipe.max_shift, self.generator))
            loss = nn.functional.cross_entropy(forward(batch), self.labels[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            self.optimizer.step()
            update = self.epoch * self.steps + step + 1
            self.schedule.step_update(update)
            self.ema.update(self.model, step=update)
            total += loss.item()
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return total / self.steps


TRAIN_SHIPPED, TEST_SHIPPED = 12_000, 3_000


def write_assets(
    model: nn.Module, data_root: Path, work_dir: Path, out: Path, *, score_images: int = 1000, report: Report = silent
) -> dict[str, object]:
    """Write the demo folder: model, images, licence, card, and exact scores of every channel.

    The shipped images are class-balanced draws by seed 0 from the published training and test sets. The exact scores
    can be interrupted: what is finished stays in `work_dir`.
    """
    shape = shape_of(model, "demo")
    cfg = {"mean": (MEAN,), "std": (STD,), "interpolation": "bilinear", "crop_pct": 1.0}
    save_model(model, out, shape=shape, pretrained_cfg=cfg, name="demo", class_names=CLASS_NAMES)
    for split, count in (("train", TRAIN_SHIPPED), ("test", TEST_SHIPPED)):
        images, labels = load_full_data(data_root, split)
        chosen = _balanced(labels, count)
        with replaced(out / f"{split}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                images=images[chosen, 0].numpy(),
                labels=labels[chosen].byte().numpy(),
                classes=np.array(CLASS_NAMES),
            )
    loaded = load_model(out)
    train_images = open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=10, root=str(out))
    record = score(
        loaded, train_images, "kl", n=score_images, journal=work_dir / f"scores-{score_images}.jsonl", report=report
    )
    record.save(out / "scores.safetensors")
    test = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10, root=str(out))
    shipped = evaluate(loaded.model, test.batches(500))
    training = json.loads((work_dir / "training.json").read_text())
    (out / "README.md").write_text(_card(training, shipped.top1, record, shape))
    results = {"top1_full_test": training["top1"], "top1_shipped_test": shipped.top1}
    return {"out": str(out), **results, "scores_seconds": record.seconds}


def _balanced(labels: Tensor, count: int) -> Tensor:
    """`count` indices, equally many of each class, drawn by seed 0, ascending."""
    generator = torch.Generator().manual_seed(0)
    each = count // len(CLASS_NAMES)
    parts = []
    for label in range(len(CLASS_NAMES)):
        of_class = torch.nonzero(labels == label).flatten()
        parts.append(of_class[torch.randperm(len(of_class), generator=generator)[:each]])
    return torch.cat(parts).sort().values


def _card(training: dict[str, Any], shipped_top1: float, record: ImportanceScores, shape: ModelShape) -> str:
    recipe = training["recipe"]
    return f"""# Demo teacher: a DeiT-style ViT on Fashion-MNIST

| | |
|---|---|
| architecture | timm `{ARCHITECTURE}`, 28x28 grey, patch 4, width 96, 6 blocks, 6 heads, \
{count_parameters(shape):,} parameters |
| data | all 60,000 training images of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), MIT licence |
| top-1 | **{training["top1"]:.2f} %** on the 10,000 test images; {shipped_top1:.2f} % on the \
{TEST_SHIPPED:,} shipped here |
| made by | `python -m upvit_core demo train` |
| recipe | AdamW {recipe["lr"]:g}, weight decay {recipe["weight_decay"]:g}, batch {recipe["batch_size"]}, \
{recipe["epochs"]} epochs (half of the patches dropped in the first {recipe["dropped_epochs"]}), cosine, EMA \
{recipe["ema_decay"]:g}, flips and shifts of {recipe["max_shift"]} pixels, seed {recipe["seed"]} |
| time | {training["seconds"] / 60:.0f} minutes on {training["threads"]} CPU threads (timm {training["timm"]}, \
torch {training["torch"]}) |

`train.npz` ({TRAIN_SHIPPED:,} images) and `test.npz` ({TEST_SHIPPED:,}) are class-balanced draws from the published
training and test sets, stored without loss. `scores.safetensors` holds the exact score (Eq. 1) of every channel on
{record.images:,} training images, computed in {record.seconds / 60:.0f} minutes.

Meant for trying and teaching pruning; it knows ten kinds of clothing in 28x28 pixels and nothing else.
"""
