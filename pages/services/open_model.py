"""The open model: its shape and scores without torch; weights and images when a job needs them."""

from __future__ import annotations

import json
import os.path
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import streamlit as st
from safetensors import SafetensorError, safe_open

from pages.services import compute, jobs, limits
from pages.services.session import session
from upvit_core.cache import Cache
from upvit_core.errors import CheckpointError, DataError
from upvit_core.importance.published import import_scores
from upvit_core.paths import DEMO_FOLDER, place_of
from upvit_core.records.elastic import is_elastic
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape
from upvit_core.records.source import Source
from upvit_core.records.task import Task, model_name, task_of

if TYPE_CHECKING:
    from upvit_core.data import ImageSet
    from upvit_core.models.checkpoint import LoadedModel

KEY = "open"
PUBLISHED = "published:"
WITHOUT_WEIGHTS = "no-weights:"
RECOGNISED_HERE = "a folder of this studio · heads and normalisation as config.json says"
MOST_IMAGE_SETS = 6


@dataclass(frozen=True)
class OpenModel:
    """A model as the pages see it.

    source: its name in links. model: the path for `load_model`, "" without weights. digest: of the weights, as records
    name them. recognised: what was found in its file and what was assumed, in a line. dataset: the image set chosen
    for it in this session, "" for none. bundled, directions: scores of channels and of directions that came with it.
    device: where this session's jobs compute.
    """

    source: str
    name: str
    shape: ModelShape
    model: str
    digest: str
    recognised: str
    bundled: ImportanceScores | None = None
    directions: ImportanceScores | None = None
    dataset: str = ""
    device: str = compute.AUTO

    @property
    def has_weights(self) -> bool:
        return bool(self.model)

    @property
    def can_measure(self) -> bool:
        """True if there are weights and images."""
        return self.has_weights and bool(self.dataset)

    @property
    def is_demo(self) -> bool:
        return self.source == "demo"

    @property
    def is_elastic(self) -> bool:
        """True of an elastic model: its plans are slices, the first channels with all heads and blocks."""
        return self.has_weights and is_elastic(place_of(Source.parse(self.model).path))

    @property
    def task(self) -> Task:
        return task_of(self.shape)

    @property
    def identity(self) -> str:
        """Names the weights: changes with the source and with its files."""
        place = DEMO_FOLDER / "model.safetensors" if self.is_demo else place_of(Source.parse(self.model).path)
        return self.source + _stamp(place / "model.safetensors" if os.path.isdir(place) else place)

    @property
    def data_key(self) -> str:
        """Names the weights, the names of classes and the image set with its folders, in keys of jobs and caches."""
        place = DEMO_FOLDER if self.is_demo else Path(Source.parse(self.model).path).expanduser()
        folders = (Path(self.dataset).expanduser() / part for part in ("", "train", "val", "validation", "test"))
        return f"{self.identity}{_stamp(place / 'config.json')} {self.dataset}{''.join(map(_stamp, folders))}"

    def weights(self) -> LoadedModel:
        """The model with its weights on the job's device, read once; to be called in a background job."""
        device = compute.device(self.device)

        def load() -> LoadedModel:
            from upvit_core.models.checkpoint import load_model

            return load_model(self.model, device=device)

        return _models().get((self.identity, device), load)

    def images(self, split: Literal["train", "val"], *, labelled: bool = False, apart: bool = False) -> ImageSet:
        """One split of the chosen image set, opened once; see `open_images`. Raises DataError.

        Training images are `labelled` where that is asked for, test images always.
        """
        check_chosen(self.dataset)
        limits.confine(self.dataset)

        def read(divided: bool) -> ImageSet:
            from upvit_core.models.images import images_for

            return images_for(self.weights(), self.dataset, split, labelled=split == "val" or labelled, apart=divided)

        key = self.data_key, split, labelled
        images = _image_sets().get(key, lambda: read(False))
        return _image_sets().get((*key, "apart"), lambda: read(True)) if apart and images.undivided else images


def no_scores(shape: ModelShape) -> ImportanceScores:
    """Scores of zero: enough to count with, since counts depend only on how many channels stay."""
    values = {key: np.zeros(width) for key, width in expected_widths(shape).items()}
    return ImportanceScores(values=values, criterion="none", unit="", shape=shape)


def own_dataset(model: OpenModel) -> str:
    """The image set that comes with a model, or ""."""
    if not model.task.has_pictures:
        beside = place_of(model.model) / "text.txt"
        return str(beside) if model.has_weights and os.path.isfile(beside) else ""
    fits = (model.shape.img_size, model.shape.in_chans) == ((28, 28), 1) and model.shape.classes in (10, None)
    return "demo" if model.is_demo or fits else ""


def check_chosen(dataset: str) -> None:
    """Raise DataError where no images were chosen."""
    if not dataset:
        raise DataError(
            "No images were chosen; give a folder of class folders, an archive of one, or a timm data set name."
        )


def choose_dataset(model: OpenModel, dataset: str) -> OpenModel:
    """Choose the image set of a model for this session. Raises LimitError where it may not be read."""
    if dataset:
        limits.confine(dataset)
    session().datasets[model.source] = dataset
    return replace(model, dataset=dataset)


def with_dataset(model: OpenModel) -> OpenModel:
    """The model with its image set: the one that was chosen, else its own, else none."""
    chosen = session().datasets.get(model.source)
    return replace(model, dataset=own_dataset(model) if chosen is None else chosen, device=session().device)


def remember(opened: OpenModel) -> None:
    """Make a model the open one, in this session and in the link."""
    session().source = opened.source
    if opened.is_demo:
        if KEY in st.query_params:
            del st.query_params[KEY]
    elif st.query_params.get(KEY) != opened.source:
        st.query_params[KEY] = opened.source


def inspect(source: str) -> OpenModel | None:
    """Open a model without torch; None where it must be loaded. Raises UPViTError."""
    limits.confine(path_of(source), weights=not source.startswith(WITHOUT_WEIGHTS))
    if source == "demo":
        return _folder("demo", DEMO_FOLDER, _stamp(DEMO_FOLDER / "config.json"))
    if source.startswith(PUBLISHED):
        folder = source.removeprefix(PUBLISHED)
        return _published(source, folder, _stamp(place_of(folder)))
    if source.startswith(WITHOUT_WEIGHTS):
        for variant in ("base", "small", "tiny"):
            for distilled in (False, True):
                shape = deit_shape(variant, distilled=distilled)
                if source == WITHOUT_WEIGHTS + shape.name:
                    return OpenModel(source, model_name(shape), shape, "", "", "shape only, no weights")
        return _loaded().find(source)
    parsed = Source.parse(source)
    place = place_of(parsed.path)
    if os.path.isfile(place) and is_scores_file(place):
        return _scores_file(source, str(place), _stamp(place))
    if os.path.isdir(place) and not parsed.options and _names_shape(place):
        return _folder(source, place, _stamp(place / "config.json"))
    return _loaded().find(source + _stamp(place))


def load(source: str) -> OpenModel:
    """Open any model that `load_model` opens; takes seconds, since it needs torch."""
    from upvit_core.models.checkpoint import load_model

    limits.confine(path_of(source), weights=not source.startswith(WITHOUT_WEIGHTS))
    weights = not source.startswith(WITHOUT_WEIGHTS)
    parsed = Source.parse(source.removeprefix(WITHOUT_WEIGHTS))
    loaded = load_model(parsed, pretrained=weights)
    place = place_of(parsed.path)
    scores = _scores_beside(place) if os.path.isdir(place) else None
    directions = _directions_beside(place, loaded.shape, loaded.digest) if os.path.isdir(place) else None
    opened = OpenModel(
        source,
        loaded.name,
        loaded.shape,
        source if loaded.has_weights else "",
        loaded.digest,
        loaded.recognised.line,
        scores,
        directions,
    )
    _loaded().put(source + (_stamp(place) if weights else ""), opened)
    if loaded.has_weights:
        _models().put((opened.identity, "cpu"), loaded)
    return opened


def loading_job(source: str) -> jobs.Job[OpenModel]:
    return jobs.ensure(loading_key(source), lambda report: load(source), f"Opening {source}")


def loading_key(source: str) -> str:
    return f"open {source}"


def path_of(source: str) -> str:
    """The path or name in a source."""
    return Source.parse(source.removeprefix(PUBLISHED).removeprefix(WITHOUT_WEIGHTS)).path


def is_scores_file(path: Path) -> bool:
    """True if a file is a scores record of this project."""
    try:
        with safe_open(str(path), "numpy") as file:
            return "upvit_scores" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _stamp(path: Path) -> str:
    """A text that changes when the file does."""
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


def _directions_beside(folder: Path, shape: ModelShape, digest: str) -> ImportanceScores | None:
    """The record of directions in a model's folder, where it is of these very weights."""
    if not (path := folder / "directions.safetensors").is_file():
        return None
    record = ImportanceScores.load(path)
    fits = record.basis == "directions" and record.shape.blocks == shape.blocks and record.model_digest == digest
    return record if fits else None


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
    digest = scores.model_digest if scores else ""
    directions = _directions_beside(folder, shape, digest)
    return OpenModel(source, name, shape, source, digest, RECOGNISED_HERE, scores, directions)


@st.cache_resource(max_entries=8, show_spinner=False)
def _published(source: str, folder: str, stamp: str) -> OpenModel:
    scores = import_scores(place_of(folder))
    return OpenModel(
        source, model_name(scores.shape), scores.shape, "", scores.digest, "published scores, no weights", scores
    )


@st.cache_resource(max_entries=16, show_spinner=False)
def _scores_file(source: str, path: str, stamp: str) -> OpenModel:
    scores = ImportanceScores.load(path)
    name = scores.model or model_name(scores.shape)
    return OpenModel(source, name, scores.shape, "", scores.model_digest, "scores only, no weights", scores)


@st.cache_resource(show_spinner=False)
def _loaded() -> Cache[OpenModel]:
    return Cache(64)


@st.cache_resource(show_spinner=False)
def _models() -> Cache[LoadedModel]:
    return Cache(1)


@st.cache_resource(show_spinner=False)
def _image_sets() -> Cache[ImageSet]:
    return Cache(MOST_IMAGE_SETS)
