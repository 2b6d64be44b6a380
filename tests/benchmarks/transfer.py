"""The demo, whole and pruned to half, taken from grey clothing to CIFAR-10: the same settings for each.

python -m tests.benchmarks.transfer --epochs 2 --data ../shared/data/cifar10.tar.gz

The pruned model has learnt from the original on the demo's images for `--distil-epochs` first. Every row is trained for
the same steps with the recipe `demo` of fine-tuning; images are resized to 28 pixels and made grey, as the demo reads
them. `head only` leaves the backbone as it is, so it tells what its features are worth on images it has never seen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.report import publish
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.runs.worker import main as work
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS


def carry_out(store: RunStore, spec: RunSpec) -> tuple[Run, list[dict[str, Any]]]:
    """A run in this process, and its rows."""
    run = store.create(spec)
    if work([str(run.folder)]):
        raise SystemExit("\n".join(store.tail_log(run.id)))
    return run, store.read_metrics(run.id, 0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--distil-epochs", type=int, default=2)
    parser.add_argument("--data", default="../shared/data/cifar10.tar.gz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, help="folder in which the runs stay, for Transfer to show them")
    parser.add_argument("--pruned", type=Path, help="folder of a pruned model that has learnt already")
    parser.add_argument("--rows", type=int, default=5, help="how many of the rows, from the first")
    arguments = parser.parse_args()
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    plan = plan_uniform(scores, residual=0.5, attention=0.5, ffn=0.5, heads=3)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(arguments.runs or folder)
        pruned = str(arguments.pruned.resolve()) if arguments.pruned else ""
        if not pruned:
            distil = RunSpec(
                name="pruned", teacher="demo", plan=plan.model_dump(mode="json"), data="demo", device="cpu",
                epochs=arguments.distil_epochs, settings=PRESETS["demo"],
            )  # fmt: skip
            pruned = str(carry_out(store, distil)[0].model.resolve())
        rows = []
        for name, model, changes in (
            ("original", "demo", {}),
            ("pruned", pruned, {}),
            ("the pruned shape from scratch", pruned, {"from_scratch": True}),
            ("original, head only", "demo", {"head_only": True}),
            ("pruned, head only", pruned, {"head_only": True}),
        )[: arguments.rows]:
            settings = FINETUNE_PRESETS["demo"].model_copy(
                update={"seed": arguments.seed, "eval_images": 2000, **changes}
            )
            spec = RunSpec(
                kind="finetune", name=name, student=model, data=arguments.data, epochs=arguments.epochs, device="cpu",
                settings=settings, group=f"the demo to {Path(arguments.data).name.split('.')[0]}",
            )  # fmt: skip
            run, told = carry_out(store, spec)
            shape = load_model(run.model).shape
            rows.append(
                {"model": name, "top-1 %": f"{told[-1]['top1']:.2f}", "test images": told[-1]["images"],
                 "steps": told[-1]["step"], "params": count_parameters(shape), "MACs": count_macs(shape),
                 "seconds": round(told[-1]["seconds"])}
            )  # fmt: skip
            print(rows[-1], flush=True)
    publish(
        "the demo taken to CIFAR-10", rows, arguments.out, epochs=arguments.epochs, seed=arguments.seed,
        distil_epochs=arguments.distil_epochs, data=Path(arguments.data).name,
    )  # fmt: skip


if __name__ == "__main__":
    main()
