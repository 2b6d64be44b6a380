"""How long the accuracy preview of a plan takes on the demo, as the Trade-off page computes it: cut, 1,000 images, KL.

quiet python -m tests.benchmarks.previews --threads 2

Plans are different every time, so nothing is cached; the teacher's answers are there already, as on the page.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks.report import publish
from upvit_core.data import open_images, proxy_indices
from upvit_core.evaluation import evaluate, predict
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs
from upvit_core.pruning.prune import cut
from upvit_core.records.scores import ImportanceScores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plans", type=int, default=5, help="of each ratio")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scores, loaded = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors"), load_model("demo")
    data = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg)
    indices = proxy_indices(data, arguments.images, 0)
    teacher, _ = predict(loaded.model, data.batches(250, indices=indices))
    rows, every = [], []
    for ratio in (0.0, 0.1, 0.25, 0.5, 0.75):
        taken = []
        for number in range(arguments.plans):
            plan = plan_uniform(scores, residual=ratio, attention=ratio, ffn=ratio + 0.01 * number, snap=True)
            began, cpu = time.perf_counter(), time.process_time()
            evaluate(cut(loaded, plan), data.batches(250, indices=indices), teacher_logits=teacher)
            taken.append((time.perf_counter() - began, time.process_time() - cpu))
        share = count_macs(plan.shape_after) / count_macs(loaded.shape)
        wall, used = [t[0] for t in taken], [t[1] for t in taken]
        every += wall
        rows.append(
            {"removed": f"{ratio:.0%}", "MACs left": f"{share:.0%}", "median s": median(wall), "slowest s": max(wall),
             "CPU s": median(used)}
        )  # fmt: skip
    publish(
        "preview of a plan on the demo", rows, arguments.out, images=arguments.images, slowest_s=round(max(every), 2)
    )


if __name__ == "__main__":
    main()
