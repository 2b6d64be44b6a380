"""What a cut by directions with repair takes at the shape of a stock DeiT: every part in one process of its own."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from tests.support.tiny import TensorProxy
from upvit_core.models.build import adapt, build_model
from upvit_core.planning.ratios import plan_uniform
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.repair import repair
from upvit_core.records.shape import deit_shape


def spent_at(size: str, images: int) -> list[dict[str, Any]]:
    """Seconds (clock and processor) of each part, and the most memory that the process had held by its end, in GB."""
    shape = deit_shape(size)
    model = build_model(shape, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    proxy = TensorProxy(torch.randn(images, 3, *shape.img_size, generator=generator))
    adapter = adapt(model, shape)
    rows: list[dict[str, Any]] = []

    def timed(what: str, work: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        rows.append({
            "part": what, "images": images, "seconds": time.perf_counter() - wall,
            "processor seconds": time.process_time() - cpu,
            "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        })  # fmt: skip
        print(rows[-1], flush=True)
        return result

    stats = timed("statistics", lambda: collect_statistics(adapter, proxy, batch_size=8))
    scores = timed("scores of directions", lambda: directions_scores(adapter, proxy, stats, batch_size=8))
    plan = plan_uniform(scores, residual=0.5, attention=0.5, ffn=0.5, snap=True, basis="directions")
    student = timed("cut", lambda: prune_directions(model, shape, plan, stats))
    timed("repair", lambda: repair(student, model, plan, proxy, stats=stats, batch_size=8))
    return rows
