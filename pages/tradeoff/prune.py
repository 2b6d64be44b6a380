"""TODO."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import streamlit as st

from pages.services import evaluation, folders, jobs, open_model
from pages.services.open_model import OpenModel
from pages.widgets import progress
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan


def prune_job(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> jobs.Job:
    """The job that cuts the model and packs the folder; its result is the path of a zip file."""

    measured_spec = evaluation.image_spec(model)

    def work(report: jobs.Report) -> Path:
        report.say("reading the weights")
        from upvit_core.models.checkpoint import save_model
        from upvit_core.pruning.prune import cut_and_record

        live = open_model.live(model)
        report.say("pruning")
        needs_images = what_if.repair or plan.basis == "directions"
        data = evaluation.images(model, measured_spec, "train") if needs_images else None
        thin, made = cut_and_record(live, plan, repair=what_if.repair, data=data, report=report)
        folder = folders.pruned() / f"{_slug(model.name)}-{plan.digest}{'-repaired' if what_if.repair else ''}"
        archive = folder.with_suffix(".zip")
        save_model(
            thin,
            folder,
            shape=plan.shape_after,
            pretrained_cfg=live.pretrained_cfg,
            plan_json=made.to_json(),
            name=f"{live.name} pruned",
            class_names=live.class_names,
        )
        report.say("packing the folder")
        temporary = archive.with_suffix(".part")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, f"{folder.name}/{path.name}")
        temporary.replace(archive)
        shutil.rmtree(folder, ignore_errors=True)
        return archive

    return jobs.start(prune_key(model, plan, what_if), work, "Pruning")


def prune_key(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> str:
    return f"prune {open_model.identity(model)} {plan.digest} {what_if.repair}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "model"


def prune_button(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> None:
    """Prune; then the folder can be taken away as a zip file."""
    key = prune_key(model, plan, what_if)
    job = jobs.find(key)
    if job is not None and job.active:
        progress.progress(job)
        return
    if job is not None and job.state == "done" and job.result.exists():
        st.download_button(
            "Download the pruned model",
            data=job.result.read_bytes,
            file_name=job.result.name,
            mime="application/zip",
            icon=":material/download:",
            type="primary",
            width="stretch",
            on_click="ignore",
            key="download-pruned",
            help="A folder with config.json, model.safetensors and plan.json; timm opens it as local-dir:FOLDER where "
            "all blocks "
            "are alike, this studio opens every one.",
        )
        return
    if job is not None and job.state == "failed":
        st.error(job.error)
    if st.button(
        "Prune",
        icon=":material/content_cut:",
        width="stretch",
        disabled=not model.has_weights,
        key="prune",
        help="Makes the thinner model." if model.has_weights else "Needs weights: open a checkpoint on the Model page.",
    ):
        jobs.discard(key)
        prune_job(model, plan, what_if)
        st.rerun()
