"""The best plan under a budget against equal ratios at the same MACs: KL measured right after surgery on the demo.

python -m tests.benchmarks.budgets --images 1000

`equal ratios` removes the same share of everything (the letter's simplest reading); `uniform` is the best of all plans
with the same ratio in every block; `stock` the best that stock timm builds. All get the MACs of `equal ratios`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tests.benchmarks.report import Row, publish
from upvit_core.data import open_images, proxy_indices
from upvit_core.evaluation import evaluate, predict
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs
from upvit_core.pruning.prune import cut
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75)
FAMILIES = ("best", "uniform", "stock", "isomorphic", "global")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--scores", type=Path, default=Path("assets/demo/scores.safetensors"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scores = ImportanceScores.load(arguments.scores)
    loaded = load_model("demo")
    images = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg)
    indices = proxy_indices(images, min(arguments.images, len(images)), 0)
    teacher, _ = predict(loaded.model, images.batches(250, indices=indices))

    def measure(plan: PruningPlan) -> tuple[float, str]:
        """KL to the teacher and top-1 right after the cut."""
        result = evaluate(cut(loaded, plan), images.batches(250, indices=indices), teacher_logits=teacher)
        assert result.kl is not None
        return result.kl, f"{result.top1:.1f}"

    full = count_macs(scores.shape)
    rows, solved = [], []
    for ratio in RATIOS:
        equal = plan_uniform(scores, Ratios.equal(ratio), snap=True)
        macs = count_macs(equal.shape_after)
        row: Row = {"ratio": f"{ratio:.0%}", "MACs": f"{macs / full:.1%}"}
        equal_kl, top1 = measure(equal)
        row |= {"KL, equal ratios": equal_kl, "top-1": top1}
        for family in arguments.families:
            start = time.perf_counter()
            best = best_plan(scores, Budget(macs=macs), family=family)
            solved.append(time.perf_counter() - start)
            kl, top1 = measure(best.plan)
            row |= {f"KL, {family}": kl, f"top-1, {family}": top1}
            if family == "best":
                row |= {"predicted": best.predicted, "lower by": f"{1 - kl / equal_kl:.0%}"}
        rows.append(row)
    never = all(row["KL, best"] <= row["KL, equal ratios"] for row in rows) if "best" in arguments.families else None
    publish(
        "budgets on the demo, right after surgery",
        rows,
        arguments.out,
        images=arguments.images,
        criterion=scores.criterion,
        never_worse=never,
        slowest_solution_s=round(max(solved), 2),
    )


if __name__ == "__main__":
    main()
