"""Images as a model reads them, with its classes as labels."""

from pathlib import Path

from upvit_core.data import ImageSet, open_images
from upvit_core.data.opening import Split
from upvit_core.errors import DataError
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
    """`open_images` with the preprocessing and the classes of a model.

    A model without a classifier takes any classes, and images without any where they have none.
    """

    def opened(labelled: bool) -> ImageSet:
        return open_images(
            str(data),
            split,
            pretrained_cfg=model.pretrained_cfg,
            num_classes=model.shape.classes,
            class_names=model.class_names,
            labelled=labelled,
            apart=apart,
            root=root,
        )

    try:
        return opened(labelled)
    except DataError:
        if not (labelled and model.shape.features):
            raise
        return opened(labelled=False)
