"""The panel "Open another": a timm name, a file or folder, an upload, published scores."""

from __future__ import annotations

import os.path
from pathlib import Path

import streamlit as st

from pages.services import folders, jobs, limits, open_model
from pages.services.session import session
from pages.widgets.plain import plain
from upvit_core.errors import CheckpointError, UPViTError
from upvit_core.files import digest
from upvit_core.paths import place_of
from upvit_core.records.source import Source

LONGEST_NAME = 80
SUFFIXES = ["pth", "pt", "bin", "safetensors", "ckpt", "tar", "npz", "zip"]


def panel() -> None:
    """Draw the panel; the model chosen there is opened on the next run."""
    forms = {"timm": _timm, "File": _path, "Upload": _upload, "Published": _published}
    if not limits.limits().uploads:
        del forms["Upload"]
    with st.container(border=True, key="open-another"):
        st.markdown("**Open another**")
        chosen = st.segmented_control(
            "From", list(forms), default="timm", key="way", label_visibility="collapsed", required=True
        )
        forms[chosen]()
        if session().source not in (None, "demo"):
            st.button("Back to the demo", icon=":material/home:", on_click=_choose, args=("demo",), type="tertiary")


def _choose(source: str) -> None:
    session().source = source


def _open(source: str) -> None:
    """Open a model on the next run; an error is shown here, and the page keeps its model."""
    try:
        open_model.inspect(source)
    except UPViTError as error:
        st.error(plain(error))
        return
    if (job := jobs.find(open_model.loading_key(source))) is not None:
        jobs.restart(job)
    _choose(source)
    st.rerun()


def _timm() -> None:
    with st.form("timm", border=False):
        name = st.text_input(
            "Name", placeholder="deit_small_patch16_224", help="Any ViT, DeiT or PVTv2 that timm knows."
        )
        weights = st.checkbox(
            "With pretrained weights", value=True, help="Without them only widths and costs can be shown."
        )
        if st.form_submit_button("Open") and name.strip():
            _open(name.strip() if weights else open_model.WITHOUT_WEIGHTS + name.strip())


def _path() -> None:
    with st.form("path", border=False):
        known = "A checkpoint of any usual form; a folder of timm, Hugging Face or this studio; a scores file; hf-hub:…"
        path = st.text_input("Path on the machine that runs this app", placeholder="/models/deit_base.pth", help=known)
        said = _how_to_open()
        if st.form_submit_button("Open") and path.strip():
            _open(str(Source.parse(path.strip()).with_flags(**said)))


def _how_to_open() -> dict[str, str | None]:
    """Fields for what a file may leave unsaid; those left empty are read from the file, or assumed and told."""
    about_heads = (
        "No tensor holds the number of heads. Where the file does not say, that of published models is assumed."
    )
    heads = st.number_input("Heads (0: as the file says)", 0, 64, 0, help=about_heads)
    with st.expander("Heads block by block, weights, normalisation"):
        each = st.text_input("Heads of each block", placeholder="6,4,5", help="With commas, in place of one number.")
        about_weights = "The name of one of several state dicts in a file, such as model beside model_ema."
        weights = st.text_input("Weights", placeholder="their average (EMA), if there is one", help=about_weights)
        mean = st.text_input("Mean", placeholder="0.485,0.456,0.406", help="One number, or one a colour.")
        std = st.text_input("Standard deviation", placeholder="0.229,0.224,0.225", help="One number, or one a colour.")
    said = {"num_heads": each or str(heads or ""), "weights": weights, "mean": mean, "std": std}
    return {name: value.replace(" ", "") or None for name, value in said.items()}


def _upload() -> None:
    file = st.file_uploader("Checkpoint or scores file", SUFFIXES, help="Read without running any code from it.")
    with st.form("upload", border=False):
        said = _how_to_open()
        pressed = st.form_submit_button(
            f"Open {plain(Path(file.name).name)}" if file else "Open", disabled=file is None
        )
    if file is None or not pressed:
        return
    content = file.getbuffer()
    name = f"{digest(content)}-{Path(file.name).name[-LONGEST_NAME:]}"
    saved = folders.keep_upload(name, content)
    _open(str(Source(str(saved)).with_flags(**said)))


def _published() -> None:
    with st.form("published", border=False):
        names = "One number a line, as released with the letter: …neck_768…, …attn_768_kl_3…, …ffn_3072_kl_3….txt"
        label = "Folder with the published score files"
        folder = st.text_input(label, placeholder="/data/up-vit-scores-2k", help=names).strip()
        if st.form_submit_button("Open") and folder:
            if not os.path.isdir(place_of(folder)):
                raise CheckpointError(f"There is no folder {folder}; give the folder that holds the score files.")
            _open(open_model.PUBLISHED + folder)
