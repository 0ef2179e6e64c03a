"""What is done to pixels before a network sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gatepruner.errors import DataError


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from the pixels, scaled to [0, 1], and what they are divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "given"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images `(N, C, H, W)` as float32, normalised."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255 - mean) / std


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")


NORMALIZATIONS = {  # of the training images of each set
    "mnist": Normalization((0.1307,), (0.3081,), "MNIST's"),
    "fashion-mnist": Normalization((0.2860,), (0.3530,), "Fashion-MNIST's"),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10's"),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR-100's"),
    "imagenet": IMAGENET,
}


def parse_normalization(text: str) -> Normalization:
    """A normalisation by name, or as `MEAN[,MEAN,...]/STD[,STD,...]`."""
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    mean, _, std = text.partition("/")
    try:
        values = [tuple(float(value) for value in part.split(",")) for part in (mean, std)]
        odd = not all(map(math.isfinite, (*values[0], *values[1])))
        if odd or len(values[0]) != len(values[1]) or min(values[1]) <= 0:
            raise ValueError
    except ValueError:
        raise DataError(
            f"unknown normalisation {text!r}: expected {', '.join(NORMALIZATIONS)} or "
            "MEAN,.../STD,... with a positive number for each channel"
        ) from None
    return Normalization(values[0], values[1])
