"""The normalisation of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gatepruner.errors import DataError


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel of pixels scaled to [0, 1].

    Attributes:
        mean: subtracted from the scaled pixels.
        std: divides the difference.
        source: whose normalisation it is, for messages.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "given"

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 images `(N, C, H, W)` to float32; `PREPARED` leaves images alone."""
        if not self.mean:
            return images
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255 - mean) / std


PREPARED = Normalization((), (), "the data set's own")
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")


NORMALIZATIONS = {  # of the training images of each set
    "mnist": Normalization((0.1307,), (0.3081,), "MNIST's"),
    "fashion-mnist": Normalization((0.2860,), (0.3530,), "Fashion-MNIST's"),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10's"),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR-100's"),
    "imagenet": IMAGENET,
}


def parse_normalization(text: str) -> Normalization:
    """Read the name of a normalisation, or `MEAN[,MEAN,...]/STD[,STD,...]`.

    Raises:
        DataError: `text` is neither.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    mean, _, std = text.partition("/")
    try:
        means, deviations = (tuple(map(float, part.split(","))) for part in (mean, std))
        finite = all(map(math.isfinite, (*means, *deviations)))
        if not finite or len(means) != len(deviations) or min(deviations) <= 0:
            raise ValueError
    except ValueError:
        raise DataError(
            f"unknown normalisation {text!r}: expected {', '.join(NORMALIZATIONS)} or "
            "MEAN,.../STD,... with one number per channel and positive deviations"
        ) from None
    return Normalization(means, deviations)
