"""Run folders with made-up curves, for pages and their speed; never shown as results."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.runs import DistillSettings, Run, RunSpec, RunState, RunStore
from upvit_core.runs.pid import ProcessIdentity

SHAPE = ModelShape("made up", 96, (BlockShape(6, 96, 384),) * 6, (28, 28), (4, 4), 1, 10)


def this_process() -> dict[str, Any]:
    """The fields of a run's state by which this process is its worker."""
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    return {"pid": me.pid, "started": me.started, "boot": me.boot}


def plan_json(ratio: float, heads: int) -> dict[str, Any]:
    values = {key: np.arange(width, dtype=float) for key, width in expected_widths(SHAPE).items()}
    scores = ImportanceScores(values, "made up", "nats", SHAPE)
    plan = plan_uniform(scores, Ratios.equal(ratio), heads=heads, snap=True)
    return json.loads(plan.to_json())


def made_run(
    store: RunStore,
    ratio: float,
    state: str = "done",
    *,
    heads: int = 3,
    evaluations: int = 8,
    steps: int = 400,
    share: float = 1.0,
    group: str = "",
    name: str = "",
    owner: str = "",
    **settings: object,
) -> Run:
    """One run of `steps` steps, `share` of them done."""
    spec = RunSpec(
        name=name or f"demo {100 * ratio:.0f}/{100 * ratio:.0f}/{100 * ratio:.0f} %",
        teacher="demo",
        data="demo",
        plan=plan_json(ratio, heads),
        epochs=4,
        group=group,
        owner=owner,
        device="cpu",
        settings=DistillSettings(**settings),
    )
    run = store.create(spec)
    speed = 900 / (1 - ratio) ** 1.3
    best, first = 91.5 - 6 * ratio**2, 91.5 - 90 * ratio**1.2
    common = {"images_per_s": speed, "images": 2000, "device": "made up"}
    start = {"step": 0, "epoch": 0.0, "seconds": 0, **common}
    lines: list[dict[str, Any]] = [
        {**start, "phase": "teacher", "top1": 91.7, "images_per_s": 900.0},
        {**start, "phase": "surgery", "top1": max(first, 10), "kl_teacher": 2.0, "speedup": speed / 900},
    ]
    done = round(steps * share)
    every = max(1, steps // evaluations)
    for step in range(1, done + 1):
        where = {"step": step, "epoch": 4 * step / steps, "seconds": step * 0.2}
        loss = 0.6 + 2 * math.exp(-6 * step / steps) + 0.05 * math.sin(step)
        lines.append({**where, "phase": "train", "loss": loss, "ce": loss * 0.7, "kl": loss * 0.3, "lr": 1e-3})
        if step % every == 0:
            top1 = best - (best - max(first, 10)) * math.exp(-7 * step / steps)
            phase = "final" if step == steps else "eval"
            lines.append({**where, "phase": phase, "top1": top1, **common, "kl_teacher": 0.1, "teacher_top1": 91.7})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.log.write_text("12:00:00 loading the teacher\n12:00:01 training\n")
    top1 = [line["top1"] for line in lines if "top1" in line][-1]
    measured = {"top1": top1, "top1_images": 2000, "teacher_top1": 91.7, "images_per_s": speed}
    progress = {"step": done, "total_steps": steps, "epoch": 4 * share, "epochs": 4}
    progress |= {"seconds": done * 0.2, "seconds_left": (steps - done) * 0.2}
    stage = "training" if state == "running" else ""
    run.write_state(RunState(state=state, stage=stage, **this_process(), **progress, **measured))  # type: ignore[arg-type]
    return run


def ladder(top1: Sequence[float]) -> list[dict[str, float]]:
    """The ladder of an elastic run's evaluation with these accuracies, whole first; speeds of 900 to 3,600 images/s."""
    shares = np.linspace(0, 0.75, len(top1))
    return [
        {"removed": share, "params": 1e6 * (1 - share) ** 2, "images_per_s": 900 / (1 - share), "top1": value,
         "kl_teacher": 1 - value / 100}
        for share, value in zip(shares.tolist(), top1, strict=True)
    ]  # fmt: skip


def evaluate_sizes(run: Run, step: int, top1: Sequence[float]) -> None:
    """Write an elastic run's evaluation: after surgery at step 0, else while training."""
    where = {"step": step, "epoch": step / 100, "seconds": 0.2 * step, "images": 2000, "images_per_s": 900.0}
    if not step:
        run.append_metrics({**where, "phase": "teacher", "top1": 91.7, "device": "made up"})
    row = {**where, "phase": "eval" if step else "surgery", "top1": top1[0], "speedup": 1.0, "ladder": ladder(top1)}
    run.append_metrics(row)


def made_elastic(store: RunStore) -> Run:
    """An elastic run that goes on, measured after surgery."""
    run = store.create(RunSpec(kind="elastic", name="every size", teacher="demo", data="demo", epochs=4, device="cpu"))
    evaluate_sizes(run, 0, [91.7, 90.0, 80.0, 40.0])
    run.write_state(RunState(state="running", stage="training", **this_process(), step=0, total_steps=400, epochs=4))
    return run


def made_store(root: Path) -> RunStore:
    """One run of every kind."""
    store = RunStore(root)
    for ratio in (0.25, 0.5, 0.75):
        made_run(store, ratio, group="sweep", heads=6 if ratio == 0.25 else 3)
    made_run(store, 0.5, name="demo 50/50/50 %", from_scratch=True)
    made_run(store, 0.6, "cancelled", share=0.3)
    made_run(store, 0.4, "interrupted", share=0.5)
    made_run(store, 0.65, "running", share=0.43)
    made_run(store, 0.7, "queued", share=0.0)
    return store
