"""Buttons that make ONNX files of a run's model, checked or measured, and give them away."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from pages.services import jobs
from pages.widgets import progress
from pages.widgets.plain import plain
from upvit_core.records.task import Task
from upvit_core.runs.folder import Run

Told = dict[str, Any]


def _export(run: Run, target: Path, report: jobs.Report) -> Told:
    report.step("reading the weights", 0.1)
    from upvit_core.export import export_onnx
    from upvit_core.models.checkpoint import load_model

    loaded = load_model(str(run.model))
    report.step("exporting and checking", 0.3)
    return export_onnx(loaded.model, loaded.shape, target)


def _export_int8(run: Run, target: Path, report: jobs.Report) -> Told:
    report.step("reading the weights", 0.1)
    from upvit_core.export import export_int8
    from upvit_core.models.checkpoint import load_model
    from upvit_core.models.images import images_for

    loaded, spec = load_model(str(run.model)), run.spec
    test, train = (images_for(loaded, spec.data, split, root=spec.data_root) for split in ("val", "train"))
    report.step("quantising and measuring", 0.3)
    return export_int8(loaded, target, "dynamic", test, train)


def _checked(told: Told) -> str:
    return (
        f"Checked with onnxruntime {told['onnxruntime']}: logits differ by at most "
        f"{told['max_abs_difference']:.1e} on {told['checked_images']} images."
    )


def measured(told: Told) -> str:
    """Bytes, accuracy and speed of an int8 file beside the float32 file's."""
    return (
        f"{told['bytes'] / 1024:,.0f} KiB where float32 takes {told['bytes_float32'] / 1024:,.0f}; top-1 "
        f"{told['top1']:.1f} % where float32 has {told['top1_float32']:.1f} % on the same {told['images']:,} images, "
        f"{told['kl']:.2g} nats of KL an image; {told['images_per_s']:,.0f} images/s where float32 does "
        f"{told['images_per_s_float32']:,.0f}, in batches of {told['batch_size']} on {told['threads']} CPU threads."
    )


@dataclass(frozen=True)
class Kind:
    """One kind of file: the words of its button, its name in the run's folder, how it is made, what is told of it."""

    label: str
    file: str
    make: Callable[[Run, Path, jobs.Report], Told]
    tell: Callable[[Told], str]


KINDS = (
    Kind("ONNX", "model.onnx", _export, _checked),
    Kind("8-bit ONNX", "model.int8.onnx", _export_int8, measured),
)


def buttons(run: Run, task: Task) -> None:
    """Draw, for each kind, the button that makes the file, the progress, or the download and what was measured."""
    for kind in KINDS:
        key, target = f"{kind.file} {run.folder}", run.folder / kind.file
        job: jobs.Job[Told] | None = jobs.find(key)
        told = progress.show(job)
        if told is not None and target.exists():
            st.download_button(
                f"Download {kind.label}", data=target.read_bytes, file_name=f"{run.id}{kind.file[5:]}",
                key=f"file-{key}", width="stretch", on_click="ignore", icon=":material/download:",
            )  # fmt: skip
            st.caption(plain(kind.tell(told)))
        elif job is None or told is not None:
            refused = None if task.has_classes else "ONNX is made of models of images; download this one as its folder."
            off, icon = not task.has_classes, ":material/ios_share:"
            if st.button(
                f"Make {kind.label}", icon=icon, key=f"make-{key}", width="stretch", disabled=off, help=refused
            ):
                jobs.start(key, partial(kind.make, run, target), kind.label, again=True)
                st.rerun()
