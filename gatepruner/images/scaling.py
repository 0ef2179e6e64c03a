"""Scaling pictures of any size to the size of a network's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL.Image import Image

from gatepruner.errors import DataError

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")


@dataclass(frozen=True)
class Scaling:
    """How a picture is scaled before its centre is cropped.

    Equal to torchvision's `Resize` (antialiased) and `CenterCrop`.

    Attributes:
        side: length of the shorter side in pixels; of both sides if they are squashed.
        interpolation: one of `INTERPOLATIONS`.
        squash: whether both sides get that length, whatever their ratio.
    """

    side: int
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"unknown interpolation {self.interpolation!r}: expected "
                f"{', '.join(INTERPOLATIONS)}"
            )

    def __str__(self) -> str:
        sides = "both sides" if self.squash else "the shorter side"
        return f"{sides} scaled to {self.side} ({self.interpolation}), the centre cropped"

    def __call__(self, image: Image, height: int, width: int) -> Image:
        """The centre of the scaled image."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2.functional import center_crop, resize

        size = [self.side] * (2 if self.squash else 1)
        scaled = resize(image, size, InterpolationMode(self.interpolation))
        cropped: Image = center_crop(scaled, [height, width])
        return cropped

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a scaled picture, before it is cropped."""
        if self.squash:
            return self.side, self.side
        short = min(height, width)
        return self.side * height // short, self.side * width // short

    def check(self, height: int, width: int) -> None:
        """Raise a `DataError` if the scaled image is smaller than what is cropped from it."""
        if self.side < max(height, width):
            raise DataError(
                f"cannot crop {height}x{width} pixels from images scaled to {self.side}: scale "
                "them to more",
                resize=max(height, width),
            )

    def to_json(self) -> dict[str, Any]:
        """The scaling as checkpoints record it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scaling:
        """The scaling that `to_json` wrote."""
        return cls(**record)
