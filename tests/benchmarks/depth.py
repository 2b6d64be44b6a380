"""Depth on the demo, right after the cut and without any training: KL and top-1 of depth alone, and of depth with width
in each order.

python -m tests.benchmarks.depth                                    all orders, depths 5 4 3, 25 and 50 % of the widths
python -m tests.benchmarks.depth --order "depth first" --depths 4   one order, one depth
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.report import publish
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate, predict
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.planning.depth import plan_depth, plan_depth_only
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.depth import ORDERS, Order, at_depth, score_blocks
from upvit_core.pruning.surgery import prune
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


def run(
    orders: Sequence[Order],
    depths: Sequence[int],
    ratios: Sequence[float],
    criterion: str,
    images: int,
    out: Path | None,
) -> None:
    loaded = load_model("demo")
    cfg, classes = loaded.pretrained_cfg, loaded.shape.num_classes
    train, test = (open_images("demo", split, pretrained_cfg=cfg, num_classes=classes) for split in ("train", "val"))
    teacher, _ = predict(loaded.model, test.batches(500))
    deepest = min(depths)
    start = time.perf_counter()
    removals = score_blocks(loaded, train, deepest, n=images)
    seconds = time.perf_counter() - start

    def row(name: str, ratio: float, plan: PruningPlan) -> dict[str, object]:
        student = prune(loaded.model, loaded.shape, plan)
        result = evaluate(student, test.batches(500), teacher_logits=teacher)
        blocks = [f"A{b.source}+F{b.ffn_block}" if b.source != b.ffn_block else str(b.source) for b in plan.blocks]
        return {
            "order": name, "depth": len(plan.blocks), "width removed": f"{ratio:.0%}", "blocks": " ".join(blocks),
            "params": count_parameters(plan.shape_after), "MACs": count_macs(plan.shape_after), "KL": result.kl,
            "top-1": result.top1,
        }  # fmt: skip

    def width(ratio: float, record: ImportanceScores) -> PruningPlan:
        return plan_uniform(record, residual=ratio, attention=ratio, ffn=ratio, snap=True)

    cached: dict[str, ImportanceScores] = {}

    def channels_once(which: LoadedModel) -> ImportanceScores:
        if which.digest not in cached:
            cached[which.digest] = score(which, train, criterion, n=images)
        return cached[which.digest]

    thin_removals: dict[str, BlockRemovals] = {}

    def half_blocks(after: PruningPlan | None) -> BlockRemovals:
        if after is None:
            return removals
        if after.digest not in thin_removals:
            thin_removals[after.digest] = score_blocks(loaded, train, deepest, n=images, after=after)
        return thin_removals[after.digest]

    rows = [row("none", 0.0, plan_uniform(channels_once(loaded)))]
    rows += [row("depth only", 0.0, plan_depth_only(removals, depth)) for depth in depths]
    for ratio in ratios:
        rows.append(row("width only", ratio, width(ratio, channels_once(loaded))))
        for depth in depths:
            for order in orders:
                if order == "depth first":
                    whole = half_blocks(None)
                    plan = plan_depth(width(ratio, channels_once(at_depth(loaded, whole, depth))), whole, depth)
                else:
                    plan = width(ratio, channels_once(loaded))
                    plan = plan_depth(plan, half_blocks(plan if order == "width first" else None), depth)
                rows.append(row(order, ratio, plan))
    publish(
        "depth and width on the demo, without training", rows, out,
        criterion=criterion, images=images, test_images=len(test), score_blocks_seconds=round(seconds, 1),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", choices=ORDERS, action="append", help="may be repeated; default: all")
    parser.add_argument("--depths", type=int, nargs="+", default=[5, 4, 3])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--criterion", default="fisher")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    run(a.order or ORDERS, a.depths, a.ratios, a.criterion, a.images, a.out)


if __name__ == "__main__":
    main()
