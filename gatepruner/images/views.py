"""Augmentation: images shifted or cropped, and mirrored, at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CROPPED = 96  # pixels of the shorter side from which images are cropped instead of shifted


@dataclass(frozen=True)
class Part:
    """Which images of a batch are at hand, where several processes share it.

    Random numbers are drawn for the whole batch, so that every image gets those that it would have
    got in a single process.

    Attributes:
        at: the places of the images in the batch: a slice, or indices `(N,)`.
        of: number of images in the batch.
    """

    at: slice | Tensor
    of: int


def _part(pixels: Tensor, part: Part | None) -> Part:
    return Part(slice(None), len(pixels)) if part is None else part


def varied(pixels: Tensor, part: Part | None = None) -> Tensor:
    """Images varied at random as suits their size: large ones cropped, small ones shifted.

    Args:
        pixels: `(N, C, H, W)` uint8.
        part: which images of a batch they are; by default all.

    Returns:
        Images of the same shape.
    """
    return (cropped if min(pixels.shape[2:]) >= CROPPED else augmented)(pixels, part)


def cropped(pixels: Tensor, part: Part | None = None, *, least: float = 0.35) -> Tensor:
    """A random part of every image at its full size, mirrored at random if it is in colour.

    Each image has a rectangle of its own, with sides in a ratio of 3/4 to 4/3, which is scaled
    bilinearly.

    Source: Szegedy et al., 2015, https://arxiv.org/abs/1409.4842, where the least share is 0.08.

    Args:
        pixels: `(N, C, H, W)` uint8.
        part: which images of a batch they are; by default all.
        least: smallest share of the image's area; the largest is 1.

    Returns:
        Images of the same shape and type.
    """
    from torchvision.transforms.v2 import RandomResizedCrop
    from torchvision.transforms.v2.functional import resized_crop

    size, result, part = list(pixels.shape[2:]), torch.empty_like(pixels), _part(pixels, part)
    boxes = torch.tensor(
        [RandomResizedCrop.get_params(pixels, [least, 1.0], [3 / 4, 4 / 3]) for _ in range(part.of)]
    )
    for index, box in enumerate(boxes[part.at].tolist()):
        result[index] = resized_crop(pixels[index], *box, size=size)
    return mirrored(result, part)


def augmented(pixels: Tensor, part: Part | None = None) -> Tensor:
    """Images shifted by up to an eighth of their width, and mirrored if they are in colour.

    Args:
        pixels: `(N, C, H, W)` of any type; pixels shifted in are 0.
        part: which images of a batch they are; by default all.

    Returns:
        Images of the same shape.
    """
    n, channels, height, width = pixels.shape
    most, part = width // 8, _part(pixels, part)
    padded = F.pad(pixels, (most,) * 4)
    shifts = torch.randint(2 * most + 1, (2, part.of, 1), device=pixels.device)
    down, right = shifts[:, part.at]
    rows = down + torch.arange(height, device=pixels.device)
    columns = right + torch.arange(width, device=pixels.device)
    if channels == 3:
        mirror = torch.rand(part.of, 1, device=pixels.device)[part.at] < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    index = torch.arange(n, device=pixels.device)[:, None, None]
    return padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def mirrored(pixels: Tensor, part: Part | None = None) -> Tensor:
    """Images `(N, C, H, W)`, each mirrored at random if they are in colour."""
    if pixels.shape[1] != 3:
        return pixels
    part = _part(pixels, part)
    flipped = torch.rand(part.of, 1, 1, 1, device=pixels.device)[part.at] < 0.5
    return torch.where(flipped, pixels.flip(3), pixels)
