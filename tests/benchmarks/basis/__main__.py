"""Right after the cut, no training: how much of the original is left, in two bases, with and without repair.

python -m tests.benchmarks.basis table                  25, 50, 75 % of everything on the demo, and Torch-Pruning
python -m tests.benchmarks.basis ablation               what each step adds, from the letter's cut on
python -m tests.benchmarks.basis metrics                which metric chooses the residual's directions
python -m tests.benchmarks.basis refits                 what each of repair's fits is worth; merging FFN neurons
python -m tests.benchmarks.basis distil                 one epoch from both starts, three seeds
python -m tests.benchmarks.basis teacher CIFAR OUT      a small teacher for CIFAR-10, a folder or archive of classes
python -m tests.benchmarks.basis table --teacher OUT --data CIFAR
python -m tests.benchmarks.basis cost                   time and memory at DeiT-B's shape, random weights
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tests.benchmarks.basis.setting import Setting
from tests.benchmarks.report import publish
from upvit_core.pruning.basis.slice import Basis, basis_for, channel_basis

app = typer.Typer(help=__doc__, rich_markup_mode=None)
Teacher = Annotated[str, typer.Option(help="demo, or a folder")]
Data = Annotated[str, typer.Option(help="demo, or a folder of classes")]
Images = Annotated[int, typer.Option(help="proxy images")]
Out = Annotated[Path | None, typer.Option(help="JSON file; rows that it holds already are not made again")]
HESSIAN_BATCHES = 5  # it needs a backward pass for every image
RATIOS = (0.25, 0.5, 0.75)


class Rows:
    """Rows of one table, each written to the file as soon as it is there, so that an interrupted table can go on."""

    def __init__(self, out: Path | None):
        self.out = out
        self.rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out and out.exists() else []

    def add(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        self.rows.append({**key, **make()})
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps({"rows": self.rows}))
        typer.echo(json.dumps(self.rows[-1]), err=True)
        return self.rows[-1]


def measured(top1: float, kl: float, setting: Setting) -> dict[str, Any]:
    return {"top-1 %": top1, "lost": setting.teacher_top1 - top1, "KL": kl}


def about(setting: Setting) -> dict[str, Any]:
    return {
        "teacher": setting.loaded.name, "teacher_top1": setting.teacher_top1, "test_images": len(setting.test),
        "proxy_images": len(setting.proxy), "proxy_digest": setting.proxy.digest,
        "seconds": {k: round(v, 1) for k, v in setting.spent.wall.items()},
        "processor_seconds": {k: round(v, 1) for k, v in setting.spent.cpu.items()},
    }  # fmt: skip


@app.command()
def table(
    teacher: Teacher = "demo", data: Data = "demo", images: Images = 2000, seed: int = 0,
    merged: bool = True, peers: Annotated[str, typer.Option(help="Torch-Pruning's criteria")] = "l1,l2,taylor,hessian",
    ratios: Annotated[str, typer.Option(help="shares removed")] = "0.25,0.5,0.75", out: Out = None,
) -> None:  # fmt: skip
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
    kept: dict[str, Any] = {}

    def plain() -> dict[str, Any]:
        kept["plan"] = setting.plan(basis, ratio, heads)
        kept["student"] = setting.cut(kept["plan"])
        return measured(*setting.measure(kept["student"]), setting)

    def mended() -> dict[str, Any]:
        if "plan" not in kept:
            plain()
        return measured(*setting.measure(setting.repaired(kept["student"], kept["plan"])), setting)

    rows.add({**key, "way": basis}, plain)
    rows.add({**key, "way": f"{basis}, repaired"}, mended)


def _peer(setting: Setting, rows: Rows, ratio: float, criteria: list[str]) -> None:
    """Torch-Pruning's criteria, by its own surgery at the same shape; the least KL of them is the one to compare."""
    from tests.benchmarks.torch_pruning_peer import cut_to

    shape, images = setting.plan("channels", ratio).shape_after, list(setting.proxy.batches(100))
    for criterion in criteria:

        def make(criterion: str = criterion) -> dict[str, Any]:
            few = images[:HESSIAN_BATCHES] if criterion == "hessian" else images
            peer = cut_to(setting.loaded.model, setting.loaded.shape, criterion, few, ratio=ratio)
            if (peer.shape.embed_dim, peer.shape.blocks) != (shape.embed_dim, shape.blocks):
                raise SystemExit(f"Torch-Pruning made another shape: {peer.shape}")
            return measured(*setting.measure(peer.model), setting)

        rows.add(
            {"removed": f"{ratio:.0%}", "heads": shape.num_heads, "way": f"Torch-Pruning, {criterion}"}, make
        )  # fmt: skip


@app.command()
def ablation(
    teacher: Teacher = "demo", data: Data = "demo", images: Images = 2000, seed: int = 0, out: Out = None
) -> None:
    """Letter, + repair, + residual directions, + head factors, + FFN channels that the rest cannot make up for."""
    setting, rows = Setting(teacher, data, images, seed), Rows(out)

    for ratio in RATIOS:
        channels, directions = setting.plan("channels", ratio), setting.plan("directions", ratio)
        ffn_by_score = directions.model_copy(update={"blocks": tuple(
            d.model_copy(update={"ffn": c.ffn}) for c, d in zip(channels.blocks, directions.blocks, strict=True)
        )})  # fmt: skip
        only_residual = channels.model_copy(update={"basis": "directions", "residual": directions.residual})
        own, selected = basis_for(directions, setting.stats), channel_basis(channels)
        steps = {
            "channels (the letter)": (channels, None, False),
            "+ repair": (channels, None, True),
            "+ residual directions": (only_residual, Basis(own.embedding, selected.heads), True),
            "+ head factors": (ffn_by_score, own, True),
            "+ FFN by elimination (everything)": (directions, own, True),
            "everything without repair": (directions, own, False),
        }
        for name, (plan, basis, mend) in steps.items():

            def make(plan=plan, basis=basis, mend=mend) -> dict[str, Any]:  # type: ignore[no-untyped-def]
                student = setting.cut(plan, basis)
                return measured(
                    *setting.measure(setting.repaired(student, plan, basis) if mend else student), setting
                )  # fmt: skip

            rows.add({"removed": f"{ratio:.0%}", "way": name}, make)
    publish("what each step adds", rows.rows, out, **about(setting))


@app.command()
def metrics(
    teacher: Teacher = "demo", data: Data = "demo", images: Images = 2000, seed: int = 0, out: Out = None
) -> None:
    """The residual alone, and everything, with directions by each metric; repaired."""
    from dataclasses import replace

    from tests.benchmarks.basis.metrics import METRICS, by_fisher, with_metric
    from upvit_core.planning.ratios import plan_uniform

    setting, rows = Setting(teacher, data, images, seed), Rows(out)
    own, like = setting.stats, next(setting.loaded.model.parameters())
    scores = setting.directions
    kinds = {m: (lambda m=m: with_metric(own, m)) for m in METRICS}
    kinds |= {f"Fisher of {m}": (lambda m=m: by_fisher(own, setting.proxy, like, m)) for m in ("activations", "both")}
    for name, choose in kinds.items():
        chosen = None
        for ratio in RATIOS:
            for what in ("residual", "everything"):

                def make(ratio=ratio, what=what, choose=choose) -> dict[str, Any]:  # type: ignore[no-untyped-def]
                    nonlocal chosen
                    chosen = chosen or choose()
                    other = ratio if what == "everything" else 0.0
                    plan = plan_uniform(
                        scores, residual=ratio, attention=other, ffn=other, snap=True, basis="directions"
                    )
                    setting.stats = replace(chosen)
                    student = setting.cut(plan)
                    return {
                        "KL cut": setting.measure(student)[1],
                        **measured(*setting.measure(setting.repaired(student, plan)), setting),
                    }

                rows.add({"metric": name, "removed": f"{ratio:.0%}", "of": what}, make)
    setting.stats = own
    publish("the residual's metric", rows.rows, out, **about(setting))


@app.command()
def refits(
    teacher: Teacher = "demo", data: Data = "demo", images: Images = 2000, seed: int = 0, out: Out = None
) -> None:
    """Everything, with some of repair's fits left out; and with FFN neurons merged, where else they are dropped."""
    from tests.benchmarks.basis.refits import WITHOUT, leaving_out, merged

    setting, rows = Setting(teacher, data, images, seed), Rows(out)
    for ratio in RATIOS:
        plan = setting.plan("directions", ratio)
        ways = {name: (setting.cut, endings) for name, endings in WITHOUT.items()}
        ways["neurons merged, fc1 not refitted"] = (lambda plan: merged(setting, plan), (".fc1",))
        for name, (make_student, endings) in ways.items():

            def make(plan=plan, make_student=make_student, endings=endings) -> dict[str, Any]:  # type: ignore[no-untyped-def]
                with leaving_out(endings):
                    student = setting.repaired(make_student(plan), plan)
                return measured(*setting.measure(student), setting)

            rows.add({"removed": f"{ratio:.0%}", "way": name}, make)
    publish("what each fit of repair is worth", rows.rows, out, **about(setting))


@app.command()
def distil(
    teacher: Teacher = "demo", data: Data = "demo", ratio: float = 0.5, epochs: int = 1, seeds: int = 3,
    images: Images = 2000, lr: Annotated[float | None, typer.Option(help="default: the recipe's")] = None,
    recipes: Annotated[str, typer.Option(help="presets, or unmixed")] = "demo,unmixed,repaired", out: Out = None,
) -> None:  # fmt: skip
    """The same steps from the letter's start and from directions, repaired, each by every recipe."""
    from tests.benchmarks.basis.training import climb

    setting, rows = Setting(teacher, data, images), Rows(out)
    for recipe in recipes.split(","):
        for seed in range(seeds):
            for basis in ("channels", "directions"):

                def make(basis=basis, seed=seed, recipe=recipe) -> dict[str, Any]:  # type: ignore[no-untyped-def]
                    plan = setting.plan(basis, ratio)
                    student = setting.cut(plan)
                    if basis == "directions":
                        student = setting.repaired(student, plan)
                    start = measured(*setting.measure(student), setting)
                    steps, seconds = climb(setting, student, epochs, seed, recipe, lr)
                    end = measured(*setting.measure(student), setting)
                    return {
                        "steps": steps, "top-1 % start": start["top-1 %"], "KL start": start["KL"], **end,
                        "seconds": round(seconds, 1),
                    }  # fmt: skip

                rows.add({"start": basis, "recipe": recipe, "lr": lr, "seed": seed}, make)
    publish("one epoch of distillation", rows.rows, out, **about(setting), ratio=ratio, epochs=epochs)


@app.command()
def teacher(data: str, folder: Path, steps: int = 3000, seed: int = 0) -> None:
    """Train a small teacher on 32 × 32 colour images, in some ten minutes of one core, and write it to a folder."""
    from tests.benchmarks.basis.training import train_teacher

    typer.echo(json.dumps(train_teacher(data, folder, steps, seed)))


@app.command()
def cost(size: str = "base", images: int = 64, out: Out = None) -> None:
    """One cut of 50 % by directions with repair, on random weights and random images: seconds and peak memory."""
    from tests.benchmarks.basis.cost import spent_at

    publish("cost at DeiT's shape", spent_at(size, images), out, size=size, threads=torch.get_num_threads())


if __name__ == "__main__":
    app()
