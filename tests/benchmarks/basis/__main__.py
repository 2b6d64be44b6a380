"""Right after the cut, no training: how much of the original is left, in two bases, with and without repair.

python -m tests.benchmarks.basis table                  25, 50, 75 % of everything on the demo, and Torch-Pruning
python -m tests.benchmarks.basis distil                 one epoch from both starts, three seeds
python -m tests.benchmarks.basis table --teacher FOLDER --data IMAGES
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from tests.benchmarks.basis.setting import Setting
from tests.benchmarks.report import Row, publish

app = typer.Typer(help=__doc__, rich_markup_mode=None)
Teacher = Annotated[str, typer.Option(help="demo, or a folder")]
Data = Annotated[str, typer.Option(help="demo, or a folder of classes")]
Images = Annotated[int, typer.Option(help="proxy images")]
Out = Annotated[Path | None, typer.Option(help="JSON file; rows that it holds already are not made again")]
HESSIAN_BATCHES = 5  # it needs a backward pass for every image


class Rows:
    """Rows of one table, each written to the file as soon as it is there, so that an interrupted table can go on."""

    def __init__(self, out: Path | None):
        self.out = out
        self.rows: list[Row] = json.loads(out.read_text())["rows"] if out and out.exists() else []

    def add(self, key: Row, make: Callable[[], Row]) -> None:
        if any(key.items() <= row.items() for row in self.rows):
            return
        self.rows.append({**key, **make()})
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps({"rows": self.rows}))
        typer.echo(json.dumps(self.rows[-1]), err=True)


def measured(setting: Setting, student: nn.Module) -> Row:
    top1, kl = setting.measure(student)
    return {"top-1 %": top1, "lost": setting.teacher_top1 - top1, "KL": kl}


def about(setting: Setting) -> dict[str, object]:
    return {
        "teacher": setting.loaded.name,
        "teacher_top1": setting.teacher_top1,
        "test_images": len(setting.test),
        "proxy_images": len(setting.proxy),
        "proxy_digest": setting.proxy.digest,
        "seconds": {k: round(v, 1) for k, v in setting.seconds.items()},
    }


@app.command()
def table(
    teacher: Teacher = "demo",
    data: Data = "demo",
    images: Images = 2000,
    seed: int = 0,
    merged: bool = True,
    peers: Annotated[str, typer.Option(help="Torch-Pruning's criteria")] = "l1,l2,taylor,hessian",
    ratios: Annotated[str, typer.Option(help="shares removed")] = "0.25,0.5,0.75",
    out: Out = None,
) -> None:
    """Channels and directions, each with and without repair and head merging, and a peer at the same shape."""
    setting, rows = Setting(teacher, data, images, seed), Rows(out)
    heads = setting.loaded.shape.num_heads
    for ratio in map(float, ratios.split(",")):
        for merge in (None, heads // 2) if merged and heads and heads % 2 == 0 else (None,):
            for basis in ("channels", "directions"):
                _both(setting, rows, basis, ratio, merge)
        _peer(setting, rows, ratio, peers.split(",") if peers else [])
    publish("right after the cut", rows.rows, out, **about(setting))


def _both(setting: Setting, rows: Rows, basis: str, ratio: float, heads: int | None) -> None:
    key = {"removed": f"{ratio:.0%}", "heads": heads or setting.loaded.shape.num_heads}
    cut: Row = {}

    def plain() -> Row:
        cut["plan"] = setting.plan(basis, ratio, heads)
        cut["student"] = setting.cut(cut["plan"])
        return measured(setting, cut["student"])

    def repaired() -> Row:
        if "plan" not in cut:
            plain()
        return measured(setting, setting.repaired(cut["student"], cut["plan"]))

    rows.add({**key, "way": basis}, plain)
    rows.add({**key, "way": f"{basis}, repaired"}, repaired)


def _peer(setting: Setting, rows: Rows, ratio: float, criteria: list[str]) -> None:
    """Torch-Pruning's criteria, by its own surgery at the same shape; the least KL of them is the one to compare."""
    from tests.benchmarks.torch_pruning_peer import cut_to

    shape, images = setting.plan("channels", ratio).shape_after, list(setting.proxy.batches(100))
    for criterion in criteria:

        def make(criterion: str = criterion) -> Row:
            few = images[:HESSIAN_BATCHES] if criterion == "hessian" else images
            peer = cut_to(setting.loaded.model, setting.loaded.shape, criterion, few, ratio=ratio)
            if (peer.shape.embed_dim, peer.shape.blocks) != (shape.embed_dim, shape.blocks):
                raise SystemExit(f"Torch-Pruning made another shape: {peer.shape}")
            return measured(setting, peer.model)

        rows.add({"removed": f"{ratio:.0%}", "heads": shape.num_heads, "way": f"Torch-Pruning, {criterion}"}, make)


@app.command()
def distil(
    teacher: Teacher = "demo",
    data: Data = "demo",
    ratio: float = 0.5,
    epochs: int = 1,
    seeds: int = 3,
    images: Images = 2000,
    lr: Annotated[float | None, typer.Option(help="default: the recipe's")] = None,
    recipes: Annotated[str, typer.Option(help="presets, or unmixed")] = "demo,unmixed,repaired",
    out: Out = None,
) -> None:
    """The same steps from the letter's start and from directions, repaired, each by every recipe."""
    from tests.benchmarks.basis.training import train

    setting, rows = Setting(teacher, data, images), Rows(out)
    for recipe in recipes.split(","):
        for seed in range(seeds):
            for basis in ("channels", "directions"):

                def make(basis: str = basis, seed: int = seed, recipe: str = recipe) -> Row:
                    plan = setting.plan(basis, ratio)
                    student = setting.cut(plan)
                    if basis == "directions":
                        student = setting.repaired(student, plan)
                    start = measured(setting, student)
                    steps, seconds = train(setting, student, epochs, seed, recipe, lr)
                    before = {"top-1 % start": start["top-1 %"], "KL start": start["KL"]}
                    return {"steps": steps, **before, **measured(setting, student), "seconds": round(seconds, 1)}

                rows.add({"start": basis, "recipe": recipe, "lr": lr, "seed": seed}, make)
    publish("one epoch of distillation", rows.rows, out, **about(setting), ratio=ratio, epochs=epochs)


if __name__ == "__main__":
    app()
