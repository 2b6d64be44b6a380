"""The demo at 50 % of every component and half the heads: after surgery, after distillation, and from scratch.

python -m tests.benchmarks.end_to_end --epochs 8

Every row is trained for the same steps with the same recipe (preset `demo`) on the images shipped with the demo;
top-1 is that of the shipped test images, images/s are measured in turns in one run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.report import Row, publish
from upvit_core.models.checkpoint import build_model, load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.profiling.throughput import Throughput, measure
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.runs.worker import main as work
from upvit_core.training.settings import PRESETS


def run(plan: PruningPlan, root: Path, epochs: int, *, seed: int, scratch: bool) -> list[Row]:
    """Metrics of one run, carried out in this process."""
    settings = PRESETS["demo"].model_copy(update={"from_scratch": scratch, "seed": seed})
    spec = RunSpec(
        name="scratch" if scratch else "pruned",
        teacher="demo",
        plan=plan.model_dump(mode="json"),
        data="demo",
        epochs=epochs,
        settings=settings,
        device="cpu",
    )
    store = RunStore(root)
    order = store.create(spec)
    if work([str(order.folder)]):
        raise SystemExit("\n".join(store.tail_log(order.id)))
    return store.read_metrics(order.id, 0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    loaded = load_model("demo")
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    plan = plan_uniform(scores, Ratios.equal(0.5), heads=3)
    with tempfile.TemporaryDirectory() as folder:
        pruned, scratch = (
            run(plan, Path(folder), arguments.epochs, seed=arguments.seed, scratch=which) for which in (False, True)
        )
    thin = plan.shape_after
    speeds = measure(
        [loaded.model, build_model(thin)],
        torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        repeats=20,
    )
    final = {name: rows[-1] for name, rows in (("pruned", pruned), ("scratch", scratch))}
    teacher = next(row for row in pruned if row["phase"] == "teacher")
    surgery = next(row for row in pruned if row["phase"] == "surgery")

    def row(name: str, top1: float, steps: int, shape: ModelShape, speed: Throughput) -> Row:
        return {
            "model": name,
            "top-1 %": f"{top1:.2f}",
            "steps": steps,
            "params": count_parameters(shape),
            "MACs": count_macs(shape),
            "images/s, batch 32": f"{speed.images_per_s:.0f} ({speed.low:.0f}–{speed.high:.0f})",
        }

    rows = [
        row("teacher", teacher["top1"], 0, loaded.shape, speeds[0]),
        row("after surgery", surgery["top1"], 0, thin, speeds[1]),
        row("after distillation", final["pruned"]["top1"], final["pruned"]["step"], thin, speeds[1]),
        row("same shape from scratch", final["scratch"]["top1"], final["scratch"]["step"], thin, speeds[1]),
    ]
    publish(
        "demo, 50 % of every component, 3 heads",
        rows,
        arguments.out,
        epochs=arguments.epochs,
        seed=arguments.seed,
        test_images=final["pruned"].get("images"),
        criterion=scores.criterion,
        score_images=scores.images,
        distillation_seconds=final["pruned"].get("seconds"),
    )


if __name__ == "__main__":
    main()
