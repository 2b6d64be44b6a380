"""The panel "Open another": a timm name, a file or folder, an upload, published scores."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.services import folders, jobs, limits, open_model
from pages.services.session import session
from upvit_core.errors import CheckpointError, UPViTError
from upvit_core.files import digest
from upvit_core.records.source import Source

LONGEST_NAME = 80
SUFFIXES = ["pth", "pt", "bin", "safetensors"]


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
        st.error(str(error))
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
        known = "A checkpoint of DeiT, timm or Hugging Face; a folder of timm or this studio; a scores file; hf-hub:…"
        path = st.text_input("Path on the machine that runs this app", placeholder="/models/deit_base.pth", help=known)
        about_heads = "No tensor holds the number of heads. Without a config, heads of 64 channels are assumed."
        heads = st.number_input("Heads (0: as the file says)", 0, 64, 0, help=about_heads)
        if st.form_submit_button("Open") and path.strip():
            _open(str(Source(path.strip(), heads)))


def _upload() -> None:
    file = st.file_uploader("Checkpoint or scores file", SUFFIXES, help="Read without running any code from it.")
    if file is None:
        return
    content = file.getbuffer()
    name = f"{digest(content)}-{Path(file.name).name[-LONGEST_NAME:]}"
    saved = folders.uploads() / name
    if not saved.exists():
        temporary = saved.with_suffix(".part")
        temporary.write_bytes(content)
        temporary.replace(saved)
    if session().source != str(saved) and st.button(f"Open {Path(file.name).name}"):
        _open(str(saved))


def _published() -> None:
    with st.form("published", border=False):
        names = "One number a line, as released with the letter: …neck_768…, …attn_768_kl_3…, …ffn_3072_kl_3….txt"
        label = "Folder with the published score files"
        folder = st.text_input(label, placeholder="/data/up-vit-scores-2k", help=names).strip()
        if st.form_submit_button("Open") and folder:
            if not Path(folder).expanduser().is_dir():
                raise CheckpointError(f"There is no folder {folder}; give the folder that holds the score files.")
            _open(open_model.PUBLISHED + folder)
