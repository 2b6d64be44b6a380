"""What is open: a model's shape and scores, known without torch; its weights only when something needs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from safetensors import SafetensorError, safe_open

from pages.services import limits
from upvit_core.errors import CheckpointError
from upvit_core.importance.published import import_scores
from upvit_core.paths import DEMO_FOLDER
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape, deit_shape
from upvit_core.records.task import model_name

if TYPE_CHECKING:
    from upvit_core.models.checkpoint import LoadedModel

KEY = "open"
PUBLISHED = "published:"
WITHOUT_WEIGHTS = "no-weights:"
HEADS = "#heads="


@dataclass(frozen=True)
class OpenModel:
    """`source` is what the link carries; `model` is what `load_model` takes, empty where there are only scores."""

    source: str
    name: str
    shape: ModelShape
    model: str
    digest: str
    about: str
    bundled: ImportanceScores | None = None

    @property
    def has_weights(self) -> bool:
        return bool(self.model)

    @property
    def is_demo(self) -> bool:
        return self.source == "demo"


def no_scores(shape: ModelShape) -> ImportanceScores:
    """Zeros: enough to count with, since counts ask only how many channels stay."""
    values = {key: np.zeros(width) for key, width in expected_widths(shape).items()}
    return ImportanceScores(values=values, criterion="none", unit="", shape=shape)


def remember(opened: OpenModel) -> OpenModel:
    """Make it the one that is open, in this session and in the link."""
    st.session_state[KEY] = opened.source
    if opened.is_demo:
        if KEY in st.query_params:
            del st.query_params[KEY]
    elif st.query_params.get(KEY) != opened.source:
        st.query_params[KEY] = opened.source
    return opened


def peek(source: str) -> OpenModel | None:
    """Open what can be opened without torch; None for what must be loaded.

    Raises UPViTError with one sentence.
    """
    limits.confine(bare(source))
    if source == "demo":
        return _folder("demo", DEMO_FOLDER, _stamp(DEMO_FOLDER / "config.json"))
    if source.startswith(PUBLISHED):
        folder = source.removeprefix(PUBLISHED)
        return _published(source, folder, _stamp(Path(folder).expanduser()))
    if source.startswith(WITHOUT_WEIGHTS):
        for variant in ("base", "small", "tiny"):
            for distilled in (False, True):
                shape = deit_shape(variant, distilled=distilled)
                if source == WITHOUT_WEIGHTS + shape.name:
                    return OpenModel(source, model_name(shape), shape, "", "", "shape only, no weights")
        return _loaded().get(source)
    path, heads = split_heads(source)
    place = Path(path).expanduser()
    if place.is_file() and is_scores_file(place):
        return _scores_file(source, str(place), _stamp(place))
    if place.is_dir() and heads is None and _names_shape(place):
        return _folder(source, place, _stamp(place / "config.json"))
    return _loaded().get(source + _stamp(place))


def load(source: str) -> OpenModel:
    """Open anything that `load_model` opens; takes seconds, since it needs torch."""
    from upvit_core.models.checkpoint import load_model

    limits.confine(bare(source))
    weights = not source.startswith(WITHOUT_WEIGHTS)
    path, heads = split_heads(source.removeprefix(WITHOUT_WEIGHTS))
    loaded = load_model(path, num_heads=heads, pretrained=weights)
    place = Path(path).expanduser()
    about = f"heads: {loaded.head_count_source}" if loaded.has_weights else "shape only, no weights"
    scores = _scores_beside(place) if place.is_dir() else None
    opened = OpenModel(
        source, loaded.name, loaded.shape, source if loaded.has_weights else "", loaded.digest, about, scores
    )
    _loaded()[source + (_stamp(place) if weights else "")] = opened
    if loaded.has_weights:
        _models().clear()
        _models()[identity(opened)] = loaded
    return opened


def bare(source: str) -> str:
    """The path or name in what a link carries."""
    return source.removeprefix(PUBLISHED).removeprefix(WITHOUT_WEIGHTS).partition(HEADS)[0]


def live(opened: OpenModel) -> LoadedModel:
    """The model with its weights, read once; to be called from a background job."""
    path, heads = split_heads(opened.model)
    key, models = identity(opened), _models()
    if key not in models:
        from upvit_core.models.checkpoint import load_model

        models.clear()
        models[key] = load_model(path, num_heads=heads)
    return models[key]


def identity(opened: OpenModel) -> str:
    """Names the weights: changes with the source and with its files."""
    path, _ = split_heads(opened.model)
    place = DEMO_FOLDER / "model.safetensors" if opened.is_demo else Path(path).expanduser()
    return opened.source + _stamp(place / "model.safetensors" if place.is_dir() else place)


def split_heads(source: str) -> tuple[str, int | None]:
    """`path#heads=12` to its two parts."""
    path, found, heads = source.partition(HEADS)
    if not found:
        return path, None
    if not heads.isdigit() or int(heads) < 1:
        raise CheckpointError(f"{heads!r} is not a number of heads; give a whole number from 1 up.")
    return path, int(heads)


def is_scores_file(path: Path) -> bool:
    """Whether a file is a scores record of this project."""
    try:
        with safe_open(str(path), "numpy") as file:
            return "upvit_scores" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _stamp(path: Path) -> str:
    """Changes when the file does, so that nothing old is shown."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"@{status.st_mtime_ns}-{status.st_size}"


def _names_shape(folder: Path) -> bool:
    try:
        return "upvit_shape" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def _scores_beside(folder: Path) -> ImportanceScores | None:
    for path in sorted(folder.glob("*scores*.safetensors")):
        return ImportanceScores.load(path)
    return None


@st.cache_resource(max_entries=16, show_spinner=False)
def _folder(source: str, folder: Path, stamp: str) -> OpenModel:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = ModelShape.from_dict(config["upvit_shape"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if source == "demo":
            raise CheckpointError(
                "The demo model is missing from assets/demo; restore that folder from the repository, or make it again "
                "with `python -m upvit_core demo train`."
            ) from error
        raise CheckpointError(f"{folder}/config.json does not describe a model ({error}); restore it.") from error
    scores = _scores_beside(folder)
    name = "Demo ViT" if source == "demo" else str(config.get("upvit_name") or model_name(shape))
    about = "ships with the studio" if source == "demo" else str(folder)
    return OpenModel(source, name, shape, source, scores.model_digest if scores else "", about, scores)


@st.cache_resource(max_entries=8, show_spinner=False)
def _published(source: str, folder: str, stamp: str) -> OpenModel:
    scores = import_scores(Path(folder).expanduser())
    about = "published scores, no weights"
    return OpenModel(source, model_name(scores.shape), scores.shape, "", scores.digest, about, scores)


@st.cache_resource(max_entries=16, show_spinner=False)
def _scores_file(source: str, path: str, stamp: str) -> OpenModel:
    scores = ImportanceScores.load(path)
    name = scores.model or model_name(scores.shape)
    return OpenModel(source, name, scores.shape, "", scores.model_digest, "scores only, no weights", scores)


@st.cache_resource(show_spinner=False)
def _loaded() -> dict[str, OpenModel]:
    return {}


@st.cache_resource(show_spinner=False)
def _models() -> dict[str, LoadedModel]:
    return {}
