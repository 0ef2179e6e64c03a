"""Decoding an image into a tensor, from a file or from bytes."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.scaling import Scaling
from gatepruner.models import Shape

# Pillow knows more, and for some of them starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class Encoded:
    """An encoded image that is in memory.

    Attributes:
        name: where it comes from, for messages.
        content: what would be in its file.
    """

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


def decode(file: str | Encoded, shape: Shape, resize: Scaling | None) -> Tensor:
    """Decode an image.

    Args:
        file: its path, or an image that is in memory.
        shape: `(C, H, W)`; one channel is grey, otherwise the image is RGB.
        resize: scales the image and crops its centre; `None` for neither.

    Returns:
        The pixels `(C, H, W)` uint8.

    Raises:
        DataError: the file is no image, or the image has another size.
    """
    channels, height, width = shape
    try:
        place = file if isinstance(file, str) else io.BytesIO(file.content)
        with Image.open(place, formats=_formats()) as opened:
            image = _eight_bits(opened, str(file)).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"cannot read the image {file}: expected {', '.join(_formats())}") from None
    except OSError as error:
        raise DataError(f"cannot read the image {file}: {error}") from None
    if resize is not None:
        image = resize(image, height, width)
    if (image.height, image.width) != (height, width):
        raise DataError(
            f"{file} has {image.height}x{image.width} pixels, the network takes {height}x{width}: "
            "scale the shorter side and crop the centre",
            resize=height,
        )
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _eight_bits(image: Image.Image, file: str) -> Image.Image:
    """The image with 8 bits a channel; Pillow would cut off whatever is above 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{file} has pixels of 32 bits, whose range is not known: expected 8 or 16 bits; "
            "convert it"
        )
    return image
