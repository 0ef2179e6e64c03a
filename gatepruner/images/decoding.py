"""Decoding an image into a tensor, from a file or from bytes."""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.Image import Transpose
from torch import Tensor

from gatepruner.errors import DataError, first_line
from gatepruner.images.scaling import Scaling
from gatepruner.models import Shape

# Whatever a file is called, nothing else is tried: an EPS file, for one, is a program.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # of an image, as Pillow has it; in RGB they take 256 MiB
# What sets a photo upright, by its orientation (Exif 2.3, tag 274).
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_OPENING = threading.Lock()  # the filters of warnings belong to all threads


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


class Decoded(ABC):
    """A picture that has been decoded already."""

    @abstractmethod
    def pixels(self) -> Tensor:
        """Its pixels `(C, H, W)` uint8."""


def decode(file: str | Encoded | Decoded, shape: Shape, resize: Scaling | None) -> Tensor:
    """Decode an image.

    Args:
        file: its path, or an image that is in memory or decoded already.
        shape: `(C, H, W)`; one channel is grey, otherwise the image is RGB. A turned photo is
            set upright, and what is transparent becomes white.
        resize: scales the image and crops its centre; `None` for neither.

    Returns:
        The pixels `(C, H, W)` uint8.

    Raises:
        DataError: the file is no image, is damaged or too large, or has another size or pixels
            whose range is not known.
    """
    if isinstance(file, Decoded):
        return file.pixels()
    channels, height, width = shape
    try:
        with _opened(file) as opened:
            upright = _eight_bits(_upright(opened), opened.format, str(file))
            image = _in_mode(_opaque(upright), "L" if channels == 1 else "RGB")
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"cannot read the image {file}: expected {', '.join(_formats())}") from None
    except Exception as error:  # Pillow raises almost anything for a damaged file
        raise DataError(f"cannot read the image {file}: {first_line(error)}") from None
    if resize is not None:
        _refuse_long(image, resize, str(file))
        image = resize(image, height, width)
    if (image.height, image.width) != (height, width):
        raise DataError(
            f"{file} has {image.height}x{image.width} pixels, the network takes {height}x{width}: "
            "scale the shorter side and crop the centre",
            resize=height,
        )
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def _opened(file: str | Encoded) -> Image.Image:
    """The image in a file, of which only the size has been read."""
    if isinstance(file, str) and not os.path.isfile(file):  # a pipe would never end
        raise DataError(f"cannot read the image {file}: it is no file")
    place = file if isinstance(file, str) else io.BytesIO(file.content)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(place, formats=_formats())
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise DataError(
            f"{file} has {image.height}x{image.width} pixels: expected at most {MOST_PIXELS:,}"
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image as it was seen; metadata that cannot be read say nothing about that.

    `ImageOps.exif_transpose` writes all metadata anew, and fails where one of them is odd.
    """
    image.load()  # metadata may follow the pixels
    try:
        turned = UPRIGHT.get(image.getexif().get(Base.Orientation, 1))
    except Exception:  # Pillow raises almost anything for damaged metadata
        return image
    return image if turned is None else image.transpose(turned)


def _refuse_long(image: Image.Image, resize: Scaling, file: str) -> None:
    """Raise a `DataError` if a picture is so long that it would become large."""
    height, width = resize.size(image.height, image.width)
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file} has {image.height}x{image.width} pixels, and scaled it would have "
            f"{height}x{width}: expected at most {MOST_PIXELS:,}; leave it out, or crop it"
        )


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white, if some of it is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode; Pillow would copy one that has it already."""
    return image if image.mode == mode else image.convert(mode)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _eight_bits(image: Image.Image, kind: str | None, file: str) -> Image.Image:
    """The image with 8 bits a channel; Pillow would cut off whatever is above 255."""
    deep = image.mode == "I" and kind in ("PNG", "PPM")  # of 16 bits; PNG in Pillow before 11
    if image.mode.startswith("I;16") or deep:
        pixels = np.asarray(image)
        grey = Image.fromarray((pixels >> 8).astype(np.uint8))
        if "transparency" in image.info:  # the value of transparent pixels
            grey.putalpha(Image.fromarray(pixels != image.info["transparency"]).convert("L"))
        return grey
    if image.mode in ("I", "F"):
        raise DataError(
            f"{file} has pixels of 32 bits, whose range is not known: expected 8 or 16 bits; "
            "convert it"
        )
    return image
