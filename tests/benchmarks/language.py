"""A small GPT-2 on the King James Bible, cut to half: perplexity right after, repaired, distilled, and from scratch.

python -m tests.benchmarks.language --teacher FOLDER --epochs 1

FOLDER is what `python -m upvit_core demo train-language --out FOLDER` wrote. Scores are `fisher` on 200 blocks of the
training part. Every trained row takes the same steps with the recipe `language`; perplexities are a token's, on the
whole evaluation part (the last twentieth of the text, never trained on).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.report import publish
from tests.benchmarks.transfer import carry_out
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.prune import cut
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=200, help="blocks for the scores")
    parser.add_argument("--repair-blocks", type=int, default=2000)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    teacher, text = load_model(arguments.teacher), str(arguments.teacher / "text.txt")
    train = open_images(text, "train", pretrained_cfg=teacher.pretrained_cfg)
    scores = score(teacher, train, "fisher", n=arguments.images, seed=arguments.seed)
    print(f"scored in {scores.seconds:.1f} s", flush=True)
    ratio = arguments.ratio
    plan = plan_uniform(scores, residual=ratio, attention=ratio, ffn=ratio, heads=arguments.heads)
    mended = cut(teacher, plan, repair=True, data=train, images=arguments.repair_blocks, seed=arguments.seed)
    test = open_images(text, "val", pretrained_cfg=teacher.pretrained_cfg)
    repaired = evaluate(mended, test.batches(100))
    print(f"repaired {repaired.perplexity:.2f}", flush=True)
    settings = PRESETS["language"].model_copy(update={"seed": arguments.seed, "eval_images": None})
    told: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        for name in ("distilled", "scratch", "fine-tuned"):
            changes: dict[str, Any] = {"from_scratch": name == "scratch"}
            if name != "distilled":
                changes["alpha"] = 0.0  # the text alone, without the original's answers
            spec = RunSpec(
                name=name, teacher=str(arguments.teacher), plan=plan.model_dump(mode="json"), data=text, device="cpu",
                epochs=arguments.epochs, settings=settings.model_copy(update=changes | {"eval_every": 1000.0}),
            )  # fmt: skip
            told[name] = carry_out(store, spec)[1]
            print(name, told[name][-1]["perplexity"], flush=True)

    def row(name: str, from_run: str, phase: str, shape: Any) -> dict[str, Any]:
        found = next(r for r in told[from_run] if r["phase"] == phase)
        return {
            "model": name, "perplexity": f"{found['perplexity']:.2f}", "top-1 %": f"{found['top1']:.1f}",
            "steps": found["step"], "params": count_parameters(shape), "MACs a block": count_macs(shape),
        }  # fmt: skip

    thin = plan.shape_after
    rows = [
        row("teacher", "distilled", "teacher", teacher.shape),
        row("after surgery", "distilled", "surgery", thin),
        row("repaired", "distilled", "surgery", thin)
        | {"perplexity": f"{repaired.perplexity:.2f}", "top-1 %": f"{repaired.top1:.1f}"},
        row("after surgery, then distilled", "distilled", "final", thin),
        row("after surgery, then trained without the teacher", "fine-tuned", "final", thin),
        row("same shape from scratch", "scratch", "final", thin),
    ]
    publish(
        f"GPT-2 on the King James Bible, {100 * ratio:.0f} % of every component, {arguments.heads} heads", rows,
        arguments.out, epochs=arguments.epochs, seed=arguments.seed, blocks=arguments.images,
        tokens=told["distilled"][-1]["images"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
