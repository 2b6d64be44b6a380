"""A plan as command lines: score, plan, prune and distil on a machine without a browser, as the page would."""

from __future__ import annotations

import shlex
from dataclasses import replace

from pages.services import block_removals, evaluation, open_model, recipes, scoring
from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.planning.widths import widths_of, write_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


def commands(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> str:
    """Command lines that do the same on a machine without a browser."""
    source, heads = open_model.split_heads(model.model) if model.has_weights else ("MODEL", None)
    name = shlex.quote(source)
    heads_option = f" --num-heads {heads}" if heads else ""
    data = shlex.quote(model.dataset or "IMAGES") if model.has_weights else "IMAGES"
    before, shallow = plan.shape_before, plan.shape_after.depth < plan.shape_before.depth
    # What blocks go is told by --depth; the widths are those of the plan with all of them.
    widths = replace(what_if, depth=None).plan(scores or open_model.no_scores(before)) if shallow else plan
    after = widths.shape_after
    first, last = before.blocks[0], after.blocks[0]
    ratios = {
        "residual": 1 - after.embed_dim / before.embed_dim,
        "attention": 1 - last.attention / first.attention,
        "ffn": 1 - last.ffn / first.ffn,
    }
    told = " ".join(f"--{key} {ratio:.6g}" for key, ratio in ratios.items())
    told += f" --heads {what_if.heads}" if what_if.heads else ""
    if not after.is_uniform and len(set(after.blocks)) > 1:
        told = f"--widths '{write_widths(widths_of(after))}'"
    if before.one_share:
        asked = {key: plan.requested.get(key) for key in ("residual", "attention", "ffn", "reduction")}
        told = " ".join(f"--{key} {ratio:.6g}" for key, ratio in asked.items() if ratio is not None) + " --snap"
    basis = " --basis directions" if plan.basis == "directions" else ""
    mend = (" --repair" if what_if.repair else "") + (f" --data {data}" if what_if.repair or basis else "")
    run = "python -m upvit_core"
    if basis and (scores is None or scores.basis == "directions" or scoring.can_find_directions(model)):
        count = scores.images if scores is not None and scores.basis == "directions" else evaluation.CALIBRATION_IMAGES
        lines = [
            f"{run} score {name}{heads_option} --data {data} --basis directions --images {count} --seed 0 "
            "--out scores.safetensors"
        ]
    elif model.source.startswith(open_model.PUBLISHED):
        folder = shlex.quote(model.source.removeprefix(open_model.PUBLISHED))
        lines = [f"{run} import-scores {folder} --out scores.safetensors"]
    else:
        criterion = scores.criterion if scores is not None and scores.criterion in scoring.LABELS else "fisher"
        images, seed = (scores.images, scores.seed) if scores is not None and scores.images else (2000, 0)
        lines = [
            f"{run} score {name}{heads_option} --data {data} --criterion {criterion} --images {images} --seed {seed} "
            "--out scores.safetensors"
        ]
    if shallow:
        record = block_removals.records().of_model(plan.model_digest)
        count = record.images if record is not None else 2000
        blocks = (
            f"{run} score-blocks {name}{heads_option} --data {data} --depth {plan.shape_after.depth} --images {count} "
            "--out blocks.json"
        )
        order = plan.requested.get("order")
        if order == "width first":
            lines.append(f"{run} plan scores.safetensors {told}{basis} --out widths.json")
            blocks += " --after widths.json"
        if order == "depth first":
            shallow_model = f" --depth {plan.shape_after.depth} --depth-scores blocks.json --criterion fisher"
            lines = [blocks, f"{run} score {name}{heads_option} --data {data}{shallow_model} --images {count} "
                     "--out scores.safetensors"]  # fmt: skip
        else:
            lines.append(blocks)
        told += f" --depth {plan.shape_after.depth} --depth-scores blocks.json"
    training = recipes.requested_training(model)
    options = f"--epochs {training.epochs} --preset {training.preset(model, what_if)}"
    options += f" --feature-weight {training.feature_weight:g}" if training.feature_weight else ""
    lines += [
        f"{run} plan scores.safetensors {told}{basis} --out plan.json",
        f"{run} prune {name}{heads_option} plan.json{mend} --out student",
        f"{run} distill --teacher {name} --student student --data {data} {options} --out runs",
    ]
    return "\n".join(lines)
