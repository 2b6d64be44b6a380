"""Benchmark of maps: the errors of their estimates, their cost, and their gain under budgets.

python -m tests.benchmarks.map --ways channels "directions, repaired"
python -m tests.benchmarks.map --teacher FOLDER --data D --scores F

`everywhere`: shares of 0 to 95 % and any heads; `lesser`: shares of 0 to 60 %, heads as they are or half. Seconds are
of the process, with --threads threads, so that other work on the machine does not count.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from tests.benchmarks.report import Row, publish
from upvit_core.data import open_images
from upvit_core.mapping.choose import measured_best, rank
from upvit_core.mapping.cost import expected_cost, seconds_a_mac
from upvit_core.mapping.grow import Goal, grow
from upvit_core.mapping.measure import CutMeter
from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.what_if import WhatIf, head_options
from upvit_core.profiling.macs import count_macs
from upvit_core.records.basis import Basis
from upvit_core.records.map import Map, MeasuredCut
from upvit_core.records.scores import ImportanceScores

WAYS = {
    "channels": (Basis.CHANNELS, False),
    "channels, repaired": (Basis.CHANNELS, True),
    "directions, repaired": (Basis.DIRECTIONS, True),
}
BUDGETS = (0.85, 0.75, 0.65, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25)


def unseen(meter: CutMeter, kind: str, count: int) -> list[MeasuredCut]:
    rng, shape = np.random.default_rng(123), meter.loaded.shape
    most, heads = (95, head_options(shape)) if kind == "everywhere" else (60, head_options(shape)[-2:])
    cuts = []
    for _ in range(count):
        residual, attention, ffn = rng.integers(0, most + 1, 3).tolist()
        position = WhatIf(residual, attention, int(rng.choice(heads)), ffn, basis=meter.basis)
        cuts.append(meter.measure(position.plan_widths(meter.scores)))
    return cuts


def errors(record: Map, cuts: list[MeasuredCut]) -> Row:
    estimates = Surrogate(record).estimate(cuts)
    kl, top1 = np.array([cut.kl for cut in cuts]), np.array([cut.top1 for cut in cuts])
    off, points = np.abs(estimates.kl / kl - 1), np.abs(estimates.value - top1)
    inside = (estimates.kl_low <= kl) & (kl <= estimates.kl_high)
    value_inside = (estimates.value_low <= top1) & (top1 <= estimates.value_high)
    return {
        "KL, median error": f"{np.median(off):.1%}",
        "within 30 %": f"{np.mean(off <= 0.3):.0%}",
        "rank correlation": f"{spearmanr(estimates.kl, kl)[0]:.3f}",
        "in band": f"{inside.mean():.0%}",
        "top-1, median error": f"{np.median(points):.2f}",
        "90 % within": f"{np.quantile(points, 0.9):.2f}",
        "top-1 in band": f"{value_inside.mean():.0%}",
    }


def budgets(meter: CutMeter, record: Map) -> list[Row]:
    surrogate, full, rows = Surrogate(record), count_macs(meter.loaded.shape), []
    for share in BUDGETS:
        limit = Budget(macs=share * full)
        ranked = rank(surrogate, meter.scores, lambda s: best_plan(s, limit, basis=meter.basis))  # noqa: B023
        _, (own, *others) = measured_best(meter, ranked)
        best = min((own, *others), key=lambda cut: cut.kl)
        row = {
            "MACs": f"{share:.0%}",
            "KL, solver": own.kl,
            "KL, map": best.kl,
            "lower by": f"{1 - best.kl / own.kl:.0%}",
        }
        rows.append({**row, "top-1, solver": own.top1, "top-1, map": best.top1, "sure": ranked.best > 0})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--scores", type=Path, default=Path("assets/demo/scores.safetensors"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--cuts", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded, scores = load_model(arguments.teacher, device="cpu"), ImportanceScores.load(arguments.scores)
    opening = {"pretrained_cfg": loaded.pretrained_cfg, "num_classes": loaded.shape.num_classes}
    test, train = (open_images(arguments.data, split, **opening) for split in ("val", "train"))
    rows: list[Row] = []
    for way in arguments.ways:
        basis, repair = WAYS[way]
        meter = CutMeter(loaded, scores, test, train, basis, repair)
        told, start, passed = expected_cost(meter, seconds_a_mac(meter)), time.process_time(), {}
        record = grow(
            meter,
            most=max(arguments.cuts),
            goal=Goal(kl=0),
            on_cut=lambda m, passed=passed: passed.update({len(m.cuts): time.process_time()}),
        )
        for kind in ("everywhere", "lesser"):
            cuts = unseen(meter, kind, arguments.plans)
            for count in arguments.cuts:
                part = record.model_copy(update={"cuts": record.cuts[:count]})
                rows.append(
                    {
                        "way": way,
                        "plans": kind,
                        "cuts": count,
                        **errors(part, cuts),
                        "seconds": round(passed[count] - start, 1),
                        "told": round(told.seconds * count, 1),
                    }
                )
                print(rows[-1], flush=True)
        won = budgets(meter, record)
        publish(
            f"{way}: plans within a budget, measured",
            won,
            None,
            never_worse=all(row["KL, map"] <= row["KL, solver"] for row in won),
        )
        surrogate, point = (
            Surrogate(record),
            Worth(scores, basis).of(best_plan(scores, Budget(macs=0.5 * count_macs(loaded.shape)), basis=basis).plan),
        )
        start = time.perf_counter()
        surrogate.estimate([point])
        print(f"one answer: {1e3 * (time.perf_counter() - start):.1f} ms; left out: {record.errors[-1]}")
    publish("maps", rows, arguments.out, teacher=arguments.teacher, plans=arguments.plans, threads=arguments.threads)


if __name__ == "__main__":
    main()
