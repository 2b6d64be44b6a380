"""Decode a picture: raster formats only, since Pillow goes by content and would have other programs run some others."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".gif")
MOST_PIXELS = 64_000_000
LARGEST_FILE = 1 << 28
"""Bytes of one file of a picture."""


def decode(content: bytes | BinaryIO) -> Image.Image:
    """The picture, decoded. Raises OSError for another format, for damage, and for one of more than MOST_PIXELS."""
    image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise OSError(f"a picture of {image.width} by {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
    image.load()
    return image
