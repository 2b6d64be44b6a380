"""The Prune button: cuts the open model by the plan and offers the result as a zip file."""

import shutil
from pathlib import Path

import streamlit as st

from pages.services import folders, jobs
from pages.services.open_model import OpenModel
from pages.widgets import progress
from upvit_core.files import write_zip
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan

CONTENT = (
    "A folder with config.json, model.safetensors and plan.json; timm opens it as local-dir:FOLDER if all blocks "
    "are alike; this studio opens it in any case."
)


def prune_button(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> None:
    """The button Prune, replaced by the download when done; an elastic model has the download at once."""
    job: jobs.Job[Path] | None = jobs.find(_prune_key(model, plan, what_if))
    archive = progress.show(job)
    if model.is_elastic or (archive is not None and archive.exists()):
        st.download_button(
            "Take this size" if model.is_elastic else "Download the pruned model",
            data=lambda: (archive or packed(model, plan, what_if)).read_bytes(),
            file_name=f"{_name(model, plan, what_if)}.zip",
            mime="application/zip",
            icon=":material/download:",
            type="primary",
            width="stretch",
            on_click="ignore",
            key="download-pruned",
            help=CONTENT,
        )
    elif (job is None or archive is not None) and st.button(
        "Prune",
        icon=":material/content_cut:",
        width="stretch",
        disabled=not model.has_weights,
        key="prune",
        help="Makes the thinner model." if model.has_weights else "Needs weights: open a checkpoint on Start.",
    ):
        start_pruning(model, plan, what_if)
        st.rerun()


def start_pruning(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> jobs.Job[Path]:
    """The job that cuts the model and packs the folder; its result is the zip file."""

    def work(report: jobs.Report) -> Path:
        return packed(model, plan, what_if, report)

    return jobs.start(_prune_key(model, plan, what_if), work, "Pruning", again=True)


def packed(model: OpenModel, plan: PruningPlan, what_if: WhatIf, report: jobs.Report | None = None) -> Path:
    """Cut the thinner model, save its folder and return the folder's zip file."""
    step = report.step if report else lambda detail: None
    step("reading the weights")
    from upvit_core.importance.criterion import silent
    from upvit_core.models.checkpoint import save_model
    from upvit_core.pruning.prune import cut_and_record

    live = model.weights()
    step("pruning")
    data = model.images("train", apart=True) if what_if.repair or plan.basis == "directions" else None
    thin, record = cut_and_record(live, plan, repair=what_if.repair, data=data, report=report or silent)
    folder = folders.pruned() / _name(model, plan, what_if)
    save_model(
        thin,
        folder,
        shape=plan.shape_after,
        pretrained_cfg=live.pretrained_cfg,
        plan_json=record.to_json(),
        name=f"{live.name} pruned",
        class_names=live.class_names,
    )
    step("packing the folder")
    archive = folder.with_suffix(".zip")
    temporary = archive.with_suffix(".part")
    write_zip(temporary, folder, folder.name)
    temporary.replace(archive)
    shutil.rmtree(folder, ignore_errors=True)
    return archive


def _name(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> str:
    slug = "".join(c if c.isalnum() else "-" for c in model.name.lower()).strip("-") or "model"
    return f"{slug}-{plan.digest}{'-repaired' if what_if.repair else ''}"


def _prune_key(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> str:
    return f"prune {model.data_key} {plan.digest} {what_if.repair}"
