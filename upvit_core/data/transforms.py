"""Image to tensor, as the model's own config says: timm's transforms, after conversion to grey or colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from upvit_core.errors import DataError
from upvit_core.files import Json, Values

Transform = Callable[[Image.Image], Tensor]
SMALL = 32
MODES = {1: "L", 3: "RGB"}


DEEP_TOLD = (
    "Images of 16 bits are read with values divided by 257; those of 32 bits or floats by the range that they lie in "
    "(0 to 1, to 255, to 65,535, or else from their least to their greatest value)."
)


def is_deep(image: Image.Image) -> bool:
    """True for a grey image of more than 8 bits, whose values Pillow would clip."""
    return image.mode.startswith(("I", "F"))


def as_bytes(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits in 8 bits; see DEEP_TOLD."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    low, high = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        low, greatest = min(values.min(), 0.0), values.max()
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        high = next((step for step in steps if low == 0 and greatest <= step), greatest)
        low = low if high in steps else values.min()
    return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


class ToMode:
    """Convert an image to grey (`L`) or colour (`RGB`); a class, so that worker processes can be sent it."""

    def __init__(self, mode: str):
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode == self.mode:
            return image
        return (as_bytes(image) if is_deep(image) else image).convert(self.mode)


def data_config(pretrained_cfg: Values) -> Json:
    """timm's `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, one mean and std a channel."""
    config: Json = resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    channels = config["input_size"][0]
    if channels not in MODES:
        raise DataError(f"The model reads images of {channels} channels; only 1 (grey) or 3 (colour) can be prepared.")
    for key in ("mean", "std"):
        values = tuple(float(value) for value in config[key])
        config[key] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return config


def eval_transform(pretrained_cfg: Values, *, normalise: bool = True) -> Transform:
    """Resize and crop for evaluation: to a normalised float32 (C, H, W), or to bytes where `normalise` is False."""
    config = data_config(pretrained_cfg)
    pipeline: Transform = transforms.Compose(
        [ToMode(MODES[config["input_size"][0]]), create_transform(**config, is_training=False, normalize=normalise)]
    )
    return pipeline


class RandomCrop:
    """timm's RandomResizedCrop: an image to uint8 (C, H, W).

    The crops are timm's; torch resizes them, faster than Pillow and within a few of 255 of it.
    """

    def __init__(self, size: tuple[int, int], interpolation: str):
        self.size, self.mode = size, "bilinear" if interpolation == "bilinear" else "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        x = transforms.functional.pil_to_tensor(image.crop((left, top, left + width, top + height)))
        return torch.nn.functional.interpolate(x[None], self.size, mode=self.mode, antialias=True)[0]


def training_transform(pretrained_cfg: Values) -> Transform:
    """Augment for training: RandomResizedCrop and flips, to uint8 (C, H, W).

    Images of up to 32 pixels are shifted instead, since a crop would take too much of them: by up to 2 pixels at a size
    of 28 and 4 at 32, as in DeiT's code for CIFAR.
    """
    config = data_config(pretrained_cfg)
    size = tuple(config["input_size"][-2:])
    crop: list[Any] = [RandomCrop(size, config["interpolation"])]
    if max(size) <= SMALL:
        crop = [
            transforms.Resize(size[0], interpolation=str_to_interp_mode(config["interpolation"])),
            transforms.CenterCrop(size),
            transforms.RandomCrop(size, padding=2 if max(size) <= 28 else 4),
            transforms.PILToTensor(),
        ]
    steps = [ToMode(MODES[config["input_size"][0]]), *crop, transforms.RandomHorizontalFlip()]
    pipeline: Transform = transforms.Compose(steps)
    return pipeline
