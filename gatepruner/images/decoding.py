"""Decoding an image file into a tensor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.scaling import Scaling
from gatepruner.models import Shape


def decode(file: str, shape: Shape, resize: Scaling | None) -> Tensor:
    """Decode an image.

    Args:
        file: its path.
        shape: `(C, H, W)`; one channel is grey, otherwise the image is RGB.
        resize: scales the image and crops its centre; `None` for neither.

    Returns:
        The pixels `(C, H, W)` uint8.

    Raises:
        DataError: the file is no image, or the image has another size.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            image = _eight_bits(opened, file).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
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
