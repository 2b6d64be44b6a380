"""Options that verbs share, as records: a verb that takes such a record has all of its options.

`takes_options` spreads the records of a verb's signature over the command line, so a model is opened by the same
options whichever verb opens it, and images are named by the same two.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cached_property, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

import typer

from upvit_core.ranks import rank
from upvit_core.records.source import Source, sides_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import BaseModel

    from upvit_core.data import ImageSet
    from upvit_core.models.checkpoint import LoadedModel

DATA = "demo, a folder of classes, an archive of one, or a timm name like torch/cifar10"


def _usable(path: Path, wrong: bool, code: int) -> Path:
    near = next((place for place in (path, *path.absolute().parents) if place.exists()), path)
    if wrong or not os.access(near, os.W_OK) or not (near == path or near.is_dir()):
        number = code if wrong else errno.EACCES if near.is_dir() else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(path))
    return path


def file_to_write(path: Path | None) -> Path | None:
    """The path. Raises OSError, before any work is done, where no file can be written there."""
    return path and _usable(path, path.is_dir(), errno.EISDIR)


def folder_to_write(path: Path | None) -> Path | None:
    """The path. Raises OSError, before any work is done, where no folder can be written there."""
    return path and _usable(path, path.exists() and not path.is_dir(), errno.EEXIST)


Model = Annotated[str, typer.Argument(help="demo, a folder, a file, hf-hub:…, or a timm model name")]
Data = Annotated[str, typer.Option(help=DATA)]
Root = Annotated[str | None, typer.Option(help="folder that holds a named data set")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Depth = Annotated[int | None, typer.Option(min=1, help="blocks that stay; needs --depth-scores")]
DepthScores = Annotated[Path | None, typer.Option(help="record that score-blocks wrote")]
MapFile = Annotated[
    Path | None, typer.Option("--map", help="map.json of the model: adds the expected KL and top-1, with bands")
]
Detach = Annotated[bool, typer.Option("--detach", help="return at once; the run goes on by itself")]


@dataclass(frozen=True)
class ModelOptions:
    """Options for opening a model."""

    num_heads: Annotated[
        str | None, typer.Option(help="attention heads, if the file does not say: 6, or one number per block: 6,4,5")
    ] = None
    head_dim: Annotated[str | None, typer.Option(help="channels per head, in place of --num-heads")] = None
    weights: Annotated[
        str | None, typer.Option(help="which weights, if the file has several; default: their average (EMA), if any")
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="mean of the pixels (0 to 1): one number, or one per colour; default: the model's"),
    ] = None
    std: Annotated[str | None, typer.Option(help="standard deviation of the pixels, likewise")] = None
    img_size: Annotated[
        str | None, typer.Option(help="side of the images in pixels, or height,width; default: the model's")
    ] = None
    pretrained: Annotated[bool, typer.Option(help="--no-pretrained: random weights, for shapes only")] = True
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1 …")] = None

    @cached_property
    def torch_device(self) -> str:
        """The device of this process, which is torch's current one from now on."""
        from upvit_core.models.device import use
        from upvit_core.runs.devices import own_device

        return use(own_device(self.device))

    def source(self, model: str) -> Source:
        """The model's name with what these options say about opening it."""
        names = ("num_heads", "head_dim", "weights", "mean", "std") + ("img_size",) * (self.side is None)
        return Source.parse(model).with_flags(**{name: getattr(self, name) for name in names})

    @property
    def side(self) -> int | None:
        """The side of square images, where it was asked for; a height and width are part of the source."""
        sides = sides_of(self.img_size or "")
        return sides[0] if sides and "," not in str(self.img_size) else None

    @property
    def of_another(self) -> ModelOptions:
        """The options that hold for a second model too, such as a teacher."""
        return ModelOptions(img_size=self.img_size, device=self.torch_device)

    def open(self, model: str) -> LoadedModel:
        """The model; what was assumed about it goes to standard error."""
        from upvit_core.models.checkpoint import load_model

        loaded = load_model(
            self.source(model), pretrained=self.pretrained, device=self.torch_device, img_size=self.side
        )
        if rank() == 0:
            for sentence in loaded.recognised.assumptions:
                typer.echo(sentence, err=True)
        return loaded


@dataclass(frozen=True)
class ProxyOptions:
    """Options for the choice of images."""

    images: Annotated[
        int | None, typer.Option(min=1, help="proxy images; default: 2,000, fisher stops when the kept set is stable")
    ] = None
    seed: Annotated[int, typer.Option(min=0)] = 0
    balanced: Annotated[bool, typer.Option(help="the same number of images from each class")] = False


@dataclass(frozen=True)
class DataOptions:
    """Images or a text, as every verb names them."""

    data: Data
    root: Root = None

    def open(
        self,
        model: LoadedModel,
        split: Literal["train", "val"],
        *,
        labelled: bool = True,
        apart: bool = False,
        tell: bool = True,
    ) -> ImageSet:
        """One split, prepared as the model reads it; standard error is told how labels and split were found."""
        from upvit_core.models.images import images_for

        images = images_for(model, self.data, split, labelled=labelled, apart=apart, root=self.root)
        if tell and images.told and rank() == 0:
            typer.echo(images.told, err=True)
        return images

    def bank(self, model: LoadedModel) -> ImageSet | None:
        """Training images for k-NN, where the model is judged by it."""
        return self.open(model, "train", apart=True, tell=False) if model.shape.features else None


@dataclass(frozen=True)
class OptionalData:
    """`DataOptions` of a verb that can do without."""

    data: Annotated[str | None, typer.Option(help=DATA)] = None
    root: Root = None

    @property
    def given(self) -> DataOptions | None:
        return None if self.data is None else DataOptions(self.data, self.root)


def given_values(options: object) -> dict[str, object]:
    """The fields of a record of options that are not None."""
    return {name: value for name, value in vars(options).items() if value is not None}


def _with_help(annotation: object, kind: type[DataclassInstance], field: Field[object]) -> object:
    """The annotation of a field's option, with a help where it names none."""
    settings: type[BaseModel] | None = getattr(kind, "SETTINGS", None)
    help = field.metadata.get("help") or (settings.model_fields[field.name].description if settings else None)
    for option in getattr(annotation, "__metadata__", ()):
        option.help = option.help or help
        return annotation
    return Annotated[annotation, typer.Option(help=help)]


def takes_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the fields of each record in its signature as options of their own.

    An option without a help has that of the field's metadata, else the description of the same field in `SETTINGS`, a
    pydantic model that the record may name.
    """
    hints = get_type_hints(verb, include_extras=True)
    records: dict[str, type[DataclassInstance]] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }
    parameters: list[Parameter] = []
    for parameter in signature(verb).parameters.values():
        if kind := records.get(parameter.name):
            types = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                default = Parameter.empty if field.default is MISSING else field.default
                annotation = _with_help(types[field.name], kind, field)
                option = Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                parameters.append(option)
        else:
            annotation = hints[parameter.name]
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=annotation))

    @wraps(verb)
    def with_records(**values: object) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in records.items()
        }
        verb(**values, **made)

    with_records.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_records.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_records
