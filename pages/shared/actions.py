"""What can be done with a plan: prune and download, distil, a sweep, the command line."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import streamlit as st

from pages.shared import block_records, elsewhere, jobs, limits, measured, opened, places, scoring, words
from pages.shared.opened import Opened
from pages.shared.whatif import MOST, WhatIf
from upvit_core.errors import UPViTError
from upvit_core.importance.scores import ImportanceScores
from upvit_core.planning.plan import PruningPlan
from upvit_core.planning.widths import widths_of, write_widths
from upvit_core.profiling.macs import count_parameters
from upvit_core.recipe import PRESETS
from upvit_core.runs.devices import Device, device_named
from upvit_core.runs.executors import executor_for
from upvit_core.runs.fit import fit_shapes, gigabytes
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore

RUNS_PAGE = "pages/run/runs.py"


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
        ratios = (
            round(min(max(value * share, 0), MOST)) for value in (what_if.residual, what_if.attention, what_if.ffn)
        )
        residual, attention, ffn = ratios
        spread = "uniform" if what_if.widths else what_if.allocation
        return replace(what_if, residual=residual, attention=attention, ffn=ffn, allocation=spread, widths="")

    return [moved(0.6), what_if, moved(1.4)]


def both_ways(what_if: WhatIf) -> list[WhatIf]:
    """The same widths from two starts: the letter's channels, and directions with repair."""
    return [replace(what_if, basis="channels", repair=False), replace(what_if, basis="directions", repair=True)]


def order(
    model: Opened,
    scores: ImportanceScores,
    what_if: WhatIf,
    epochs: int,
    recipe: str,
    spec: str,
    feature_weight: float = 0.0,
) -> RunSpec:
    """The run that distils one what-if."""
    return RunSpec(
        name=f"{model.name} {what_if.words}"[:200],
        teacher=model.model,
        plan=json.loads(what_if.plan(scores).to_json()),
        repair=what_if.repair,
        data=spec,
        epochs=epochs,
        settings=PRESETS[recipe].model_copy(update={"feature_weight": feature_weight}),
        owner=owner(),
    )


def start_runs(
    model: Opened,
    scores: ImportanceScores,
    what_ifs: list[WhatIf],
    epochs: int,
    recipe: str,
    spec: str,
    feature_weight: float = 0.0,
    where: elsewhere.Where = elsewhere.HERE,
) -> None:
    """Queue one run for each what-if and go to Runs."""
    store = RunStore(places.runs())
    limits.confine(spec)
    limits.check_room(store, owner(), len(what_ifs))
    group = f"{model.name} sweep {what_ifs[len(what_ifs) // 2].words}" if len(what_ifs) > 2 else ""
    if len(what_ifs) == 2:
        group = f"{model.name} both ways {what_ifs[0].words}"
    for what_if in what_ifs:
        asked = order(model, scores, what_if, epochs, recipe, spec, feature_weight)
        asked = asked.model_copy(update={"group": group[:200], **where.changes})
        run = store.create(asked)
        executor_for(store, asked).submit(run)
        st.session_state.setdefault("started_runs", []).append(run.id)
    st.switch_page(RUNS_PAGE)


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
    with st.popover("Distil…", icon=":material/model_training:", width="stretch", disabled=not ready, help=why or None):
        if not ready or scores is None:
            return
        st.markdown("The thinner model learns from the original. The run goes on by itself; this page may be closed.")
        kinds = {"This plan": [what_if], "A sweep of 3": sweep(what_if)}
        if scores.basis == "channels" and model.shape.family == "vit":
            kinds["Both ways"] = both_ways(what_if)
        many = st.segmented_control(
            "What", list(kinds), default="This plan", required=True, wrap=True, key="distil-what",
            help="A sweep: a lighter and a heavier cut too. Both ways: these widths by channels (UP-ViT), and by "
            "directions with repair; Runs draws both starts and climbs in one chart.",
        )  # fmt: skip
        chosen = kinds[many]
        sizes = [count_parameters(w.plan(scores).shape_after) for w in chosen]
        st.markdown(
            "\n".join(f"- {w.words} → {words.short(size)} parameters" for w, size in zip(chosen, sizes, strict=True))
        )
        images = st.text_input(
            "Images", value=spec, key=f"distil-images-{model.source}", help="Folder of classes, or a timm data set."
        )
        small = model.shape.img_size[0] < 100
        one, two = st.columns(2)
        epochs = one.number_input("Epochs", 1, 1000, 4 if small else 30)
        recipe = two.selectbox(
            "Recipe",
            list(PRESETS),
            index=list(PRESETS).index(_usual_recipe(chosen, small)),
            format_func=_recipe_name,
            help="letter: Eq. 2 as written; released_code: the KL weight of the authors' script; demo: small batches "
            "for a few CPU minutes; repaired: the demo's with small steps and unmixed images, for a start that repair "
            "left near the original. All runs of a form share it.",
        )
        features = st.number_input(
            "Weight of the last feature", 0.0, 1000.0, 0.0, step=0.5, key="distil-features",
            help="Above 0, what the classifier reads is matched too: the mean square by which the student's last "
            "feature, through a linear map that is learnt with it, misses the teacher's.",
        )  # fmt: skip
        _memory(chosen, scores, recipe)
        where = elsewhere.choose("distil")
        if st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="distil-start", disabled=not images.strip()
        ):
            measured.choose_images(model, images.strip())
            try:
                start_runs(model, scores, chosen, int(epochs), recipe, images.strip(), float(features), where)
            except UPViTError as error:
                st.error(str(error))
        if many == "This plan" and images.strip():
            elsewhere.download(
                order(model, scores, what_if, int(epochs), recipe, images.strip(), float(features)), "distil"
            )


def _memory(chosen: list[WhatIf], scores: ImportanceScores, recipe: str) -> None:
    """What the run needs of the device it will get, and a warning where that is more than is free."""
    device = next_device()
    if device is None:
        return
    plans = [what_if.plan(scores) for what_if in chosen]
    fits = [fit_shapes(plan.shape_before, plan.shape_after, PRESETS[recipe], device) for plan in plans]
    known = [fit for fit in fits if fit is not None]
    if not known:
        return
    most = max(known, key=lambda fit: fit.needed)
    if most.sentence:
        st.warning(most.sentence, icon=":material/memory:")
    else:
        st.caption(f"Needs about {gigabytes(most.needed)} of the {gigabytes(device.free)} free on {device.label}.")


@st.cache_data(ttl=10, show_spinner=False)
def next_device() -> Device | None:
    return device_named("auto")


def _usual_recipe(chosen: list[WhatIf], small: bool) -> str:
    """Small steps where every start is repaired; runs that share the form share the recipe."""
    if not small:
        return "letter"
    return "repaired" if all(what_if.repair and what_if.basis == "directions" for what_if in chosen) else "demo"


def _recipe_name(name: str) -> str:
    names = {"letter": "the letter's", "released_code": "released code's", "demo": "minutes on a CPU",
             "repaired": "minutes on a CPU, after repair"}  # fmt: skip
    return names.get(name, name)


def commands(model: Opened, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> str:
    """Command lines that do the same on a machine without a browser."""
    source, heads = opened.split_heads(model.model) if model.has_weights else ("MODEL", None)
    name = shlex.quote(source)
    heads_option = f" --num-heads {heads}" if heads else ""
    data = shlex.quote(measured.image_spec(model) or "IMAGES") if model.has_weights else "IMAGES"
    before, shallow = plan.shape_before, plan.shape_after.depth < plan.shape_before.depth
    # What blocks go is told by --depth; the widths are those of the plan with all of them.
    widths = replace(what_if, depth=None).plan(scores or opened.no_scores(before)) if shallow else plan
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
    if not before.is_plain:
        asked = {key: plan.requested.get(key) for key in ("residual", "attention", "ffn", "reduction")}
        told = " ".join(f"--{key} {ratio:.6g}" for key, ratio in asked.items() if ratio is not None) + " --snap"
    basis = " --basis directions" if plan.basis == "directions" else ""
    mend = (" --repair" if what_if.repair else "") + (f" --data {data}" if what_if.repair or basis else "")
    run = "python -m upvit_core"
    if model.source.startswith(opened.PUBLISHED):
        folder = shlex.quote(model.source.removeprefix(opened.PUBLISHED))
        lines = [f"{run} import-scores {folder} --out scores.safetensors"]
    else:
        criterion = (
            scores.criterion
            if scores is not None and scores.criterion in {c.value for c in scoring.LABELS}
            else "fisher"
        )
        images, seed = (scores.images, scores.seed) if scores is not None and scores.images else (2000, 0)
        lines = [
            f"{run} score {name}{heads_option} --data {data} --criterion {criterion} --images {images} --seed {seed} "
            "--out scores.safetensors"
        ]
    if shallow:
        record = block_records.record(plan.model_digest)
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
    lines += [
        f"{run} plan scores.safetensors {told}{basis} --out plan.json",
        f"{run} prune {name}{heads_option} plan.json{mend} --out student",
        f"{run} distill --teacher {name} --student student --data {data} --epochs 30 --out runs",
    ]
    return "\n".join(lines)


def command_button(model: Opened, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> None:
    with st.popover(
        "Copy command", icon=":material/terminal:", width="stretch", help="For a machine without a browser."
    ):
        st.code(commands(model, scores, what_if, plan), language="bash", wrap_lines=True, width=560)
        if not model.has_weights:
            st.caption(
                "MODEL is a checkpoint of this shape, IMAGES a folder of classes: this app has only its scores open."
            )
