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


def prune_button(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> None:
    """Prune, then the download in the button's place."""
    job: jobs.Job[Path] | None = jobs.find(_prune_key(model, plan, what_if))
    archive = progress.show(job)
    if archive is not None and archive.exists():
        st.download_button(
            "Download the pruned model",
            data=archive.read_bytes,
            file_name=archive.name,
            mime="application/zip",
            icon=":material/download:",
            type="primary",
            width="stretch",
            on_click="ignore",
            key="download-pruned",
            help="A folder with config.json, model.safetensors and plan.json; timm opens it as local-dir:FOLDER where "
            "all blocks are alike, this studio opens every one.",
        )
    elif (job is None or archive is not None) and st.button(
        "Prune",
        icon=":material/content_cut:",
        width="stretch",
        disabled=not model.has_weights,
        key="prune",
        help="Makes the thinner model." if model.has_weights else "Needs weights: open a checkpoint on the Model page.",
    ):
        start_pruning(model, plan, what_if)
        st.rerun()


def start_pruning(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> jobs.Job[Path]:
    """The job that cuts the model and packs the folder; its result is the zip file."""

    def work(report: jobs.Report) -> Path:
        report.step("reading the weights")
        from upvit_core.models.checkpoint import save_model
        from upvit_core.pruning.prune import cut_and_record

        live = model.weights()
        report.step("pruning")
        data = model.images("train", apart=True) if what_if.repair or plan.basis == "directions" else None
        thin, record = cut_and_record(live, plan, repair=what_if.repair, data=data, report=report)
        slug = "".join(c if c.isalnum() else "-" for c in model.name.lower()).strip("-") or "model"
        folder = folders.pruned() / f"{slug}-{plan.digest}{'-repaired' if what_if.repair else ''}"
        save_model(
            thin,
            folder,
            shape=plan.shape_after,
            pretrained_cfg=live.pretrained_cfg,
            plan_json=record.to_json(),
            name=f"{live.name} pruned",
            class_names=live.class_names,
        )
        report.step("packing the folder")
        archive = folder.with_suffix(".zip")
        temporary = archive.with_suffix(".part")
        write_zip(temporary, folder, folder.name)
        temporary.replace(archive)
        shutil.rmtree(folder, ignore_errors=True)
        return archive

    return jobs.start(_prune_key(model, plan, what_if), work, "Pruning", again=True)


def _prune_key(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> str:
    return f"prune {model.data_key} {plan.digest} {what_if.repair}"
