"""A small PVTv2 the whole way on CIFAR-10: trained, scored, cut to half of every component, learnt again, exported.

python -m tests.benchmarks.pvt --data ../shared/data/cifar10.tar.gz --work work/pvt

Every step leaves its record in the work folder, so that the command goes on where it was stopped. Students train for
the same steps on the same images: after the cut, with the last feature matched besides, and from fresh weights. top-1
is that of all test images.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.report import publish
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate
from upvit_core.export import export_onnx
from upvit_core.importance.agreement import compare
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import build_model, load_model, save_model
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.prune import cut
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, pvt_shape
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.runs.worker import main as work
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS, DistillSettings

WIDTHS = (24, 48, 80, 128)
CFG = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262), "crop_pct": 1.0, "interpolation": "bilinear"}


def small() -> ModelShape:
    """PVTv2-B0's depths and heads at 32 pixels, narrower, with FFNs four times as wide."""
    stock = pvt_shape("b0", img_size=(32, 32), num_classes=10)
    widths = {group.key: WIDTHS[stock.stage_of(group.place)] for group in stock.groups}
    widths |= {f"residual.{stage}": width for stage, width in enumerate(WIDTHS)}
    widths |= {g.key: 4 * WIDTHS[stock.stage_of(g.place)] for g in stock.groups_of("ffn")}
    return replace(stock.with_widths(widths), name="small PVTv2")


def carry_out(store: RunStore, spec: RunSpec) -> list[dict[str, Any]]:
    """The rows of a run of that name, which is begun, gone on with, or known already."""
    known = {summary.name: summary.id for summary in store.list()}
    if spec.name in known:
        run_id = known[spec.name]
        if store.state(run_id).state != "done":
            store.resume(run_id)
    else:
        run_id = store.create(spec).id
    if store.state(run_id).state != "done" and work([str(store.folder(run_id))]):
        raise SystemExit("\n".join(store.tail_log(run_id)))
    return store.read_metrics(run_id, 0)[0]


def model_of(store: RunStore, name: str) -> Path:
    return next(store.folder(summary.id) / "model" for summary in store.list() if summary.name == name)


def scored(path: Path, criterion: str, loaded: Any, images: Any, count: int) -> ImportanceScores:
    if not path.exists():
        score(loaded, images, criterion, n=count, journal=path.with_suffix(".jsonl")).save(path)
    return ImportanceScores.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, default=Path("work/pvt"))
    parser.add_argument("--epochs", type=int, default=10, help="of the teacher")
    parser.add_argument("--student-epochs", type=int, default=3)
    parser.add_argument("--exact-images", type=int, default=128)
    parser.add_argument("--repair-images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    store, shape = RunStore(arguments.work / "runs"), small()

    train_images = open_images(
        arguments.data, "train", pretrained_cfg={**CFG, "input_size": (3, 32, 32)}, num_classes=10
    )
    fresh = arguments.work / "fresh"
    if not (fresh / "config.json").exists():
        save_model(
            build_model(shape, seed=0), fresh, shape=shape, pretrained_cfg=CFG, name="small PVTv2",
            class_names=train_images.class_names,
        )  # fmt: skip
    settings: DistillSettings = FINETUNE_PRESETS["demo"].model_copy(update={"batch_size": 128, "eval_images": 2000})
    carry_out(store, RunSpec(kind="finetune", name="teacher", student=str(fresh), data=arguments.data,
                             epochs=arguments.epochs, settings=settings, device="cpu"))  # fmt: skip
    loaded = load_model(model_of(store, "teacher"))

    exact = scored(arguments.work / "kl.safetensors", "kl", loaded, train_images, arguments.exact_images)
    fast = scored(arguments.work / "fisher.safetensors", "fisher", loaded, train_images, arguments.exact_images)
    plan_path = arguments.work / "plan.json"
    if not plan_path.exists():
        plan_uniform(exact, residual=0.5, attention=0.5, ffn=0.5).save(plan_path)
    plan = PruningPlan.load(plan_path)
    recipe = PRESETS["demo"].model_copy(update={"batch_size": 128, "eval_images": 2000, "cutmix": 0.0})
    runs = {
        "distilled": {}, "distilled, last feature too": {"feature_weight": 1.0}, "from scratch": {"from_scratch": True},
    }  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {
        name: carry_out(
            store,
            RunSpec(name=name, teacher=str(model_of(store, "teacher").resolve()), data=arguments.data,
                    plan=plan.model_dump(mode="json"), epochs=arguments.student_epochs,
                    settings=recipe.model_copy(update=changes), device="cpu"),
        )
        for name, changes in runs.items()
    }  # fmt: skip

    thin, after = cut(loaded, plan), plan.shape_after
    test = open_images(arguments.data, "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    mended = cut(loaded, plan, repair=True, data=train_images, images=arguments.repair_images)
    teacher, cut_only, repaired = (evaluate(model, test.batches(250)) for model in (loaded.model, thin, mended))
    final = {name: found[-1] for name, found in rows.items()}
    export = export_onnx(thin, after, arguments.work / "thin.onnx")

    def row(name: str, top1: float, steps: int, shape: ModelShape) -> dict[str, Any]:
        costs = {"params": count_parameters(shape), "MACs": count_macs(shape)}
        return {"model": name, "top-1 %": f"{top1:.2f}", "steps": steps, **costs}

    table = [row("teacher", teacher.top1, 0, loaded.shape), row("after surgery", cut_only.top1, 0, after)]
    table.append(row("after surgery, repaired", repaired.top1, 0, after))
    table += [row(name, found["top1"], found["step"], after) for name, found in final.items()]
    agreement = {
        part.component: {"spearman": round(part.spearman, 4), "lowest": round(part.spearman_lowest, 4)}
        for part in compare(exact, fast, plan, plan_uniform(fast, residual=0.5, attention=0.5, ffn=0.5))
    }
    publish(
        "small PVTv2 on CIFAR-10, 50 % of every component", table, arguments.out, epochs=arguments.epochs,
        student_epochs=arguments.student_epochs, test_images=teacher.images, exact_images=arguments.exact_images,
        fisher_against_kl=json.dumps(agreement), onnx_max_abs_difference=export["max_abs_difference"],
        stock_timm=after.is_uniform,
    )  # fmt: skip


if __name__ == "__main__":
    main()
