"""Images as a model reads them, with its classes as labels."""

from pathlib import Path

from upvit_core.data import ImageSet, open_images
from upvit_core.data.opening import Split
from upvit_core.models.checkpoint import LoadedModel

__all__ = ["Split", "images_for"]


def images_for(
    model: LoadedModel,
    data: str | Path,
    split: Split,
    *,
    labelled: bool = True,
    apart: bool = False,
    root: str | None = None,
) -> ImageSet:
    """`open_images` with the preprocessing and the classes of a model."""
    return open_images(
        str(data),
        split,
        pretrained_cfg=model.pretrained_cfg,
        num_classes=model.shape.num_classes,
        class_names=model.class_names,
        labelled=labelled,
        apart=apart,
        root=root,
    )
