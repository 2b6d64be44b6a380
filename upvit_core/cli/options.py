"""Options that verbs share, as records: a verb that takes such a record has all of its options.

`takes_options` spreads the records of a verb's signature over the command line, so a model is opened by the same
options whichever verb opens it, and images are named by the same two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import BaseModel

    from upvit_core.data import ImageSet
    from upvit_core.models.checkpoint import LoadedModel

DATA = "demo, a folder of classes, an archive of one, or a timm name like torch/cifar10"

Model = Annotated[str, typer.Argument(help="demo, a folder, a file, hf-hub:…, or a timm model name")]
Data = Annotated[str, typer.Option(help=DATA)]
Root = Annotated[str | None, typer.Option(help="folder that holds a named data set")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Depth = Annotated[int | None, typer.Option(min=1, help="blocks that stay; needs --depth-scores")]
DepthScores = Annotated[Path | None, typer.Option(help="record that score-blocks wrote")]
Detach = Annotated[bool, typer.Option("--detach", help="return at once; the run goes on by itself")]


@dataclass(frozen=True)
class ModelOptions:
    """Options for opening a model."""

    num_heads: Annotated[int | None, typer.Option(help="head count, which no tensor holds")] = None
    img_size: Annotated[int | None, typer.Option(min=1, help="side of the images in pixels; default: the model's")] = (
        None
    )
    pretrained: Annotated[bool, typer.Option(help="--no-pretrained: random weights, for shapes only")] = True
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1 …")] = None

    @property
    def torch_device(self) -> str:
        from upvit_core.runs.devices import default_device

        return default_device() if self.device in (None, "auto") else str(self.device)

    def open(self, model: str) -> LoadedModel:
        from upvit_core.models.checkpoint import load_model

        return load_model(
            model,
            num_heads=self.num_heads,
            pretrained=self.pretrained,
            device=self.torch_device,
            img_size=self.img_size,
        )


@dataclass(frozen=True)
class ProxyOptions:
    """Options for the choice of images."""

    images: Annotated[
        int | None, typer.Option(min=1, help="proxy images; default: 2,000, fisher stops when the kept set is stable")
    ] = None
    seed: Annotated[int, typer.Option()] = 0
    balanced: Annotated[bool, typer.Option(help="equally many of each class")] = False


@dataclass(frozen=True)
class DataOptions:
    """Images or a text, as every verb names them."""

    data: Data
    root: Root = None

    def open(self, model: LoadedModel, split: Literal["train", "val"]) -> ImageSet:
        """One split, prepared as the model reads it."""
        from upvit_core.data import open_images

        return open_images(
            self.data,
            split,
            pretrained_cfg=model.pretrained_cfg,
            num_classes=model.shape.num_classes,
            root=self.root,
        )


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
