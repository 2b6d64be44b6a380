"""What can be done with a plan: prune and download, distil, a sweep."""

from __future__ import annotations

import json
import secrets
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import streamlit as st

from pages.shared import elsewhere, jobs, limits, measured, opened, places, recipes, scoring, words
from pages.shared.opened import Opened
from pages.shared.recipes import Training
from pages.shared.whatif import MOST, WhatIf
from upvit_core.errors import UPViTError
from upvit_core.importance.scores import ImportanceScores
from upvit_core.planning.plan import PruningPlan
from upvit_core.profiling.macs import count_parameters
from upvit_core.runs.devices import Device, device_named
from upvit_core.runs.executors import executor_for
from upvit_core.runs.fit import fit_shapes, gigabytes
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore

RUNS_PAGE = "pages/run/runs.py"
KEPT = ("open", "presenter", "scores", "images")  # of the link, on the way to Runs


def prune_job(model: Opened, plan: PruningPlan, what_if: WhatIf) -> jobs.Job:
    """The job that cuts the model and packs the folder; its result is the path of a zip file."""

    measured_spec = measured.image_spec(model)

    def work(report: jobs.Report) -> Path:
        report.say("reading the weights")
        from upvit_core.cut import cut_and_record
        from upvit_core.models.checkpoint import save_model

        live = opened.live(model)
        report.say("pruning")
        needs_images = what_if.repair or plan.basis == "directions"
        data = measured.images(model, measured_spec, "train") if needs_images else None
        thin, made = cut_and_record(live, plan, repair=what_if.repair, data=data, report=report)
        folder = places.pruned() / f"{_slug(model.name)}-{plan.digest}{'-repaired' if what_if.repair else ''}"
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


def prune_key(model: Opened, plan: PruningPlan, what_if: WhatIf) -> str:
    return f"prune {opened.identity(model)} {plan.digest} {what_if.repair}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "model"


def prune_button(model: Opened, plan: PruningPlan, what_if: WhatIf) -> None:
    """Prune; then the folder can be taken away as a zip file."""
    key = prune_key(model, plan, what_if)
    job = jobs.find(key)
    if job is not None and job.active:
        jobs.progress(job)
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
        jobs.forget(key)
        prune_job(model, plan, what_if)
        st.rerun()


def sweep(what_if: WhatIf) -> list[WhatIf]:
    """Three plans around one: a lighter cut, itself, a heavier cut."""

    def moved(share: float) -> WhatIf:
        asked = {key: getattr(what_if, key) for key in ("residual", "attention", "ffn", "reduction")}
        ratios = {key: min(round(value * share), MOST) for key, value in asked.items() if value is not None}
        spread = "uniform" if what_if.widths else what_if.allocation
        return replace(what_if, **ratios, allocation=spread, widths="")

    return [moved(0.6), what_if, moved(1.4)]


def both_ways(what_if: WhatIf) -> list[WhatIf]:
    """The same widths from two starts: the letter's channels, and directions with repair."""
    return [replace(what_if, basis="channels", repair=False), replace(what_if, basis="directions", repair=True)]


def order(model: Opened, scores: ImportanceScores, what_if: WhatIf, training: Training) -> RunSpec:
    """The run that distils one what-if; `scores` are those that plan it (`scoring.planning`)."""
    return RunSpec(
        name=f"{model.name} {what_if.words}"[:200],
        teacher=model.model,
        plan=json.loads(what_if.plan(scores).to_json()),
        repair=what_if.repair,
        data=training.images,
        epochs=training.epochs,
        settings=training.settings(model, what_if),
        owner=owner(),
    )


def start_runs(
    model: Opened,
    scores: ImportanceScores,
    what_ifs: list[WhatIf],
    training: Training,
    where: elsewhere.Where = elsewhere.HERE,
) -> None:
    """Queue one run for each what-if and go to Runs."""
    store = RunStore(places.runs())
    limits.confine(training.images)
    limits.check_room(store, owner(), len(what_ifs))
    group = f"{model.name} sweep {what_ifs[len(what_ifs) // 2].words}" if len(what_ifs) > 2 else ""
    if len(what_ifs) == 2:
        group = f"{model.name} both ways {what_ifs[0].words}"
    for what_if in what_ifs:
        planning, _ = scoring.planning(model, scores, what_if, measured.image_spec(model))
        asked = order(model, planning or scores, what_if, training)
        asked = asked.model_copy(update={"group": group[:200], **where.changes})
        run = store.create(asked)
        executor_for(store, asked).submit(run)
        st.session_state.setdefault("started_runs", []).append(run.id)
    # Without parameters of its own, switch_page refuses to drop those of moved sliders (Streamlit 1.67).
    st.switch_page(RUNS_PAGE, query_params={key: st.query_params[key] for key in KEPT if key in st.query_params})


def owner() -> str:
    """A name for this browser session, so that its runs can be told from others'."""
    if "owner" not in st.session_state:
        st.session_state["owner"] = secrets.token_hex(4)
    return str(st.session_state["owner"])


def distil_button(model: Opened, scores: ImportanceScores | None, what_if: WhatIf) -> None:
    """ "Distil this" and "Distil a sweep of 3": a small form, then Runs."""
    spec = measured.image_spec(model)
    ready = model.has_weights and scores is not None
    why = "" if ready else "Needs weights and scores: open a checkpoint on the Model page, then score it on Importance."
    with st.popover(
        "Distil…", type="primary", icon=":material/model_training:", width="stretch", disabled=not ready,
        help=why or None, key="distil-box", on_change="rerun",
    ) as box:  # fmt: skip
        if not ready or scores is None or not box.open:
            return
        st.markdown("The thinner model learns from the original. The run goes on by itself; this page may be closed.")
        kinds = {"This plan": [what_if], "A sweep of 3": sweep(what_if)}
        if scores.basis == "channels" and model.shape.has_directions:
            kinds["Both ways"] = both_ways(what_if)
        many = st.segmented_control(
            "What", list(kinds), default="This plan", required=True, wrap=True, key="distil-what",
            persist_state="session",
            help="A sweep: a lighter and a heavier cut too. Both ways: these widths by channels (UP-ViT), and by "
            "directions with repair; Runs draws both starts and climbs in one chart.",
        )  # fmt: skip
        chosen = kinds[many]
        sizes = [count_parameters(w.plan(scores).shape_after) for w in chosen]
        st.markdown(
            "\n".join(f"- {w.words} → {words.short(size)} parameters" for w, size in zip(chosen, sizes, strict=True))
        )
        training = recipes.form(model, chosen)
        _memory(model, chosen, scores, training)
        where = elsewhere.choose("distil")
        planned = [scoring.planning(model, scores, what_if, spec) for what_if in chosen]
        finding = next((job for _, job in planned if job is not None and job.active), None)
        if finding is not None and what_if.basis == "channels":
            jobs.progress(finding)
        elif finding is not None:
            st.caption("The run can start once the directions are found.")
        found = [record for record, _ in planned if record is not None]
        complete = len(found) == len(chosen) and bool(training.images)
        if st.button("Start", type="primary", icon=":material/play_arrow:", key="distil-start", disabled=not complete):
            measured.choose_images(model, training.images)
            try:
                start_runs(model, scores, chosen, training, where)
            except UPViTError as error:
                st.error(str(error))
        if many == "This plan" and complete:
            elsewhere.download(order(model, found[0], what_if, training), "distil")


def _memory(model: Opened, chosen: list[WhatIf], scores: ImportanceScores, training: Training) -> None:
    """What the run needs of the device it will get, and a warning where that is more than is free."""
    device = next_device()
    if device is None:
        return
    fits = [
        fit_shapes(model.shape, what_if.plan(scores).shape_after, training.settings(model, what_if), device)
        for what_if in chosen
    ]
    most = max(fits, key=lambda fit: fit.needed)
    if most.sentence:
        st.warning(most.sentence, icon=":material/memory:")
    else:
        st.caption(f"Needs about {gigabytes(most.needed)} of the {gigabytes(device.free)} free on {device.label}.")


@st.cache_data(ttl=10, show_spinner=False)
def next_device() -> Device | None:
    return device_named("auto")
