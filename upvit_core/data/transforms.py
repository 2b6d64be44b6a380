"""Image to tensor, as the model's own config says: timm's transforms, after conversion to grey or colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms import str_to_interp_mode
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


def training_transform(
    pretrained_cfg: Values,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    re_prob: float = 0.0,
) -> Transform:
    """Augment for training: RandomResizedCrop and flips to a normalised float32 (C, H, W).

    Up to 32 pixels the crop would take too much, so there it is a shift, as in DeiT's code for CIFAR: up to 2 pixels
    for 28-pixel images, 4 for 32.
    """
    config = data_config(pretrained_cfg)
    size = tuple(config["input_size"][-2:])
    mode = ToMode(MODES[config["input_size"][0]])
    if max(size) <= SMALL:
        steps = [
            mode,
            transforms.Resize(size[0], interpolation=str_to_interp_mode(config["interpolation"])),
            transforms.CenterCrop(size),
            transforms.RandomCrop(size, padding=2 if max(size) <= 28 else 4),
            transforms.RandomHorizontalFlip(hflip),
            transforms.ToTensor(),
            transforms.Normalize(config["mean"], config["std"]),
        ]
    else:
        for key in ("crop_pct", "crop_mode"):
            config.pop(key)
        config["color_jitter"] = color_jitter or None
        augment = create_transform(
            **config,
            is_training=True,
            scale=scale,
            hflip=hflip,
            auto_augment=auto_augment,
            re_prob=re_prob,
        )
        steps = [mode, augment]
    pipeline: Transform = transforms.Compose(steps)
    return pipeline
