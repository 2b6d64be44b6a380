"""The report of a run: how it learnt, its results, its settings and the commands that repeat it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from upvit_core.figures.evaluations import Points, Row
from upvit_core.figures.learning_curve import plot_learning_curve
from upvit_core.figures.theme import LIGHT, Chart, axis, drawn, lines
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import IMAGES, TEXT, Task, task_of_rows
from upvit_core.report.page import Page
from upvit_core.report.plan import add_plan, counted, widths
from upvit_core.report.provenance import of_machine, of_plan
from upvit_core.runs.commands import commands
from upvit_core.runs.store import RunStore


def losses(rows: Sequence[Row]) -> Chart:
    """Loss against steps, as logged."""
    steps = np.array([row["step"] for row in rows], np.float32)
    loss = np.array([row["loss"] for row in rows], np.float32)
    trace = lines(steps, loss, LIGHT.quiet, 1.5, hovertemplate="step %{x}: %{y:.3f} nats<extra></extra>")
    layout = {"xaxis": axis(LIGHT, "training steps"), "yaxis": axis(LIGHT, "loss, nats")}
    figure = drawn([trace], layout, LIGHT, height=230, margin=(70, 30, 16, 52))
    alt = f"Training loss against steps: {loss[0]:.3g} at first, {loss[-1]:.3g} at last, {len(steps)} values."
    return Chart(figure, "Loss", alt, lambda: {"step": steps, "loss_nats": loss})


def run_report(store: RunStore, run_id: str, scores: ImportanceScores | None = None) -> str:
    """The HTML of a run as it stands; `scores` of its teacher add the pictures of what stays.

    Raises RunError where there is no such run.
    """
    run, state = store.get(run_id), store.state(run_id)
    spec = run.spec
    rows, _ = store.read_metrics(run_id)
    page = Page(f"Run: {spec.name}", f"{run.id} · {state.state} · {state.epoch:.2f} of {spec.epochs} epochs")
    page.heading("Numbers")
    points = Points(rows)
    seen, whole, teacher = points.evals, points.whole, points.teacher
    plan = _plan(run.model / "plan.json", spec.plan)
    numbers = counted(plan) if plan else []
    task = task_of_rows(rows)
    numbers += [
        (f"{task.name}, {_phase(row)}", _evaluation(row, task))
        for row in (seen[:1] + seen[-1:] if len(seen) > 1 else seen)
    ]
    numbers += [(f"{task.name}, {_phase(whole)}, all", _evaluation(whole, task))] if whole else []
    numbers += [(f"{task.name}, teacher", _evaluation(teacher, task))] if teacher else []
    if whole and (theirs := whole.get(f"teacher_{task.key}")) is not None:
        numbers.append((f"{task.name}, teacher, all", _evaluation({task.key: theirs, "images": whole["images"]}, task)))
    speeds = [row for row in rows if row.get("images_per_s") and row.get("phase") in ("teacher", "surgery")]
    numbers += [
        (f"{task.batch_items.capitalize()}/s, {_phase(row)}", f"{row['images_per_s']:,.0f} on {row.get('device', '?')}")
        for row in speeds
    ]
    page.pairs([*numbers, ("Training", f"{state.step:,} of {state.total_steps:,} steps, {state.seconds:,.0f} s")])
    if judged := [row for row in seen if task.key in row]:
        goal = teacher.get(task.key) if teacher else None if task is TEXT else state.teacher_top1
        values = [row[task.key] for row in judged]
        page.chart(plot_learning_curve([row["step"] for row in judged], values, goal, LIGHT, task=task, height=320))
    trained = [row for row in points.train if row.get("loss") is not None]
    if trained:
        page.chart(losses(trained))
    if plan:
        page.heading("What stays")
        page.pairs(widths(plan))
        add_plan(page, plan, scores)
    page.heading("Where it comes from")
    settings = spec.settings.model_dump(exclude_none=True)
    page.pairs(
        [
            ("Teacher", spec.teacher or "none"),
            ("Data", spec.data),
            ("Seed", str(spec.settings.seed)),
            ("Device", f"{spec.device}; {state.host}" if state.host else spec.device),
            *(of_plan(plan, scores) if plan else []),
            ("Settings", ", ".join(f"{key} {value}" for key, value in settings.items())),
            *of_machine(),
        ]
    )
    page.heading("To make it again")
    page.code(commands(run))
    if plan:
        page.attach("plan.json", "application/json", plan.to_json(), "plan.json, the plan itself")
    page.attach("spec.json", "application/json", spec.model_dump_json(indent=1), "spec.json, the order of the run")
    page.attach("metrics.jsonl", "application/json", "".join(json.dumps(r) + "\n" for r in rows), "metrics.jsonl")
    return page.html()


def _plan(path: Path, content: dict[str, object] | None) -> PruningPlan | None:
    if content is not None:
        return PruningPlan.from_json(json.dumps(content))
    return PruningPlan.load(path) if path.exists() else None


def _phase(row: Row) -> str:
    names = {"surgery": "right after the cut", "start": "at the start", "teacher": "teacher"}
    return names.get(str(row["phase"]), f"after {row['step']:,} steps")


def _evaluation(row: Row, task: Task) -> str:
    text, where = "", f"{row['images']:,} test {task.samples}" if row.get("images") else ""
    if task.key not in row:
        text = f"{where or task.samples} without labels"
    else:
        text = task.format(row[task.key], 2) + (f" {'of' if task is IMAGES else 'on'} {where}" if where else "")
    kl, cosine = row.get("kl_teacher"), row.get("cosine")
    text += f"; mean cosine to the teacher {cosine:.3f}" if cosine is not None else ""
    return text + (f"; KL to the teacher {kl:.4g} {task.nats}" if kl is not None else "")
