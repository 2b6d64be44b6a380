"""Decode a picture: raster formats only, since Pillow goes by content and would have other programs run some others."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".gif")
UNREAD = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".tga", ".ico", ".eps", ".exr", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".dicom",
)  # fmt: skip
"""Suffixes of pictures that are not read, which is told."""
MOST_PIXELS = 64_000_000
LARGEST_FILE = 1 << 28
"""Bytes of one file of a picture."""


def passed_over(names: Iterable[str]) -> str:
    """A sentence on the files among `names` that are pictures of formats that are not read, "" where there are none."""
    kinds = Counter(suffix for name in names if (suffix := os.path.splitext(name)[1].lower()) in UNREAD)
    if not kinds:
        return ""
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in kinds.most_common())
    return f"Pictures of formats that are not read are passed over ({counts}); convert them to JPEG or PNG."


def decode(content: bytes | BinaryIO) -> Image.Image:
    """The picture, decoded. Raises OSError for another format, for damage, and for one of more than MOST_PIXELS."""
    image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise OSError(f"a picture of {image.width} by {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
    image.load()
    return image
