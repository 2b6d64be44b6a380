"""The panel "Open your model": one drop zone, and one field for a name, a path or a hub id.

What is opened takes the place of the open model only once it is there; until then, and where it fails, the panel says
so and the page keeps what it shows.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from pages.services import folders, jobs, limits, open_model
from pages.services.session import session
from pages.widgets import progress
from pages.widgets.plain import plain
from upvit_core.errors import CheckpointError, UPViTError
from upvit_core.files import digest
from upvit_core.paths import place_of
from upvit_core.records.source import Source

LONGEST_NAME = 80
SUFFIXES = ["pth", "pt", "bin", "safetensors", "ckpt", "tar", "npz", "zip"]
CHIPS = {"DeiT-T": "deit_tiny_patch16_224", "DeiT-S": "deit_small_patch16_224", "DeiT-B": "deit_base_patch16_224"}
FIELD = "open-what"
FIELD_HELP = (
    "A ViT, DeiT or PVTv2 that timm knows; a checkpoint file or a folder of timm, Hugging Face or this studio on the "
    "machine that runs this app; hf-hub:…; a scores file; a folder of published scores, one number a line "
    "(…neck_768…, …attn_768_kl_3…, …ffn_3072_kl_3….txt)."
)
PUBLISHED_HINT = "Published scores are files: put in the folder that holds them, /data/up-vit-scores-2k or the like."


@dataclass
class Opening:
    """The source that the panel is opening, and its words about the last try."""

    source: str = ""
    message: str = ""
    hint: str = ""


def panel() -> None:
    """Draw the panel; the model chosen there is opened on the next run."""
    st.markdown("**Open your model**")
    now = session().part(Opening)
    if limits.limits().uploads:
        _upload()
    _field(now)
    if now.source:
        _follow(now)
    if now.message:
        st.error(plain(now.message))
        if now.source and "/" not in now.source and not now.source.startswith(open_model.WITHOUT_WEIGHTS):
            bare = open_model.WITHOUT_WEIGHTS + now.source
            st.button("Open its shape, without weights", on_click=_open, args=(bare,), key="open-bare")
    if now.hint:
        st.info(now.hint)
    if session().source not in (None, "demo"):
        st.button("Back to the demo", icon=":material/home:", on_click=_choose, args=("demo",), type="tertiary")


def _choose(source: str) -> None:
    session().source = source
    session().parts[Opening] = Opening()


def _open(source: str) -> None:
    """Open what needs no torch at once, else begin to; a failure is told in the panel."""
    now = session().parts[Opening] = Opening(source)
    try:
        if open_model.inspect(source) is not None:
            _choose(source)
        elif (job := jobs.find(open_model.loading_key(source))) is not None:
            jobs.restart(job)
    except UPViTError as error:
        now.message = str(error)


def _follow(now: Opening) -> None:
    """Draw the progress of what is being opened; it becomes the open model once it is there."""
    if now.message:
        return
    job = open_model.loading_job(now.source)
    if job.error:
        now.message = job.error
    elif progress.show(job) is not None:
        _choose(now.source)
        st.rerun()


def _field(now: Opening) -> None:
    def submitted() -> None:
        text = str(st.session_state[FIELD]).strip()
        try:
            if text:
                _open(_source_of(text))
        except UPViTError as error:
            session().parts[Opening] = Opening(message=str(error))

    def hint() -> None:
        session().parts[Opening] = Opening(hint=PUBLISHED_HINT)

    label = "or a timm name, a path, a hub id"
    with st.form("open", border=False), st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(label, placeholder="deit_base_patch16_224", key=FIELD, help=FIELD_HELP)
        st.form_submit_button("Open", on_click=submitted)
    with st.container(horizontal=True, gap="xsmall", key="chips"):
        for name, source in CHIPS.items():
            st.button(name, on_click=_open, args=(source,), key=f"chip-{name}")
        st.button("Published scores", on_click=hint, key="chip-published")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.number_input("Heads (0: as in the file)", 0, 64, key=HEADS, help=ABOUT_HEADS, width=190)
        with st.popover("More", type="tertiary", help="What the file may not say."):
            _unsaid()


def _source_of(text: str) -> str:
    """The source of what was put into the field; a folder of text files alone holds published scores."""
    limits.confine(open_model.path_of(text))
    place = place_of(text)
    if text.startswith(("/", "~", "./", "../")) and not os.path.exists(place_of(open_model.path_of(text))):
        raise CheckpointError(f"There is no file or folder {text}; give a path on the machine that runs this app.")
    if os.path.isdir(place) and any(Path(place).glob("*.txt")) and not (Path(place) / "config.json").is_file():
        return open_model.PUBLISHED + text
    bare = open_model.WITHOUT_WEIGHTS if not st.session_state.get("with-weights", True) else ""
    return bare + str(Source.parse(text).with_flags(**_said()))


HEADS = "unsaid-heads"
ABOUT_HEADS = "Weights do not tell it. If the file does not either, the published number is taken."
UNSAID = {
    "num_heads": ("Heads of each block", "6,4,5", "If blocks differ."),
    "weights": ("Which weights of several", "their average (EMA), if there is one", "Such as model beside model_ema."),
    "mean": ("Mean", "0.485,0.456,0.406", "One number, or one a colour."),
    "std": ("Standard deviation", "0.229,0.224,0.225", "One number, or one a colour."),
    "img_size": ("Height and width of images", "128,256", "If they are not square."),
}


def _unsaid() -> None:
    """Fields for what is else read from the file, or assumed and told."""
    for name, (label, example, about) in UNSAID.items():
        st.text_input(label, placeholder=example, key=f"unsaid-{name}", help=about)
    about = "Without them only widths and costs can be shown."
    st.checkbox("With pretrained weights", value=True, key="with-weights", help=about)


def _said() -> dict[str, str | None]:
    said = {name: str(st.session_state.get(f"unsaid-{name}", "")).replace(" ", "") or None for name in UNSAID}
    return said | {"num_heads": said["num_heads"] or str(st.session_state.get(HEADS) or "") or None}


def _upload() -> None:
    def uploaded() -> None:
        file = st.session_state["upload"]
        if file is None:
            return
        content = file.getbuffer()
        name = f"{digest(content)}-{Path(file.name).name[-LONGEST_NAME:]}"
        try:
            saved = folders.keep_upload(name, content)
        except UPViTError as error:
            session().parts[Opening] = Opening(message=str(error))
            return
        _open(str(Source(str(saved)).with_flags(**_said())))

    st.file_uploader(
        "Drop a checkpoint or a scores file; no code in it is run", SUFFIXES, key="upload", on_change=uploaded
    )
