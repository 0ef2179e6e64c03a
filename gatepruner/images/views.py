"""Augmentation: images shifted or cropped, and mirrored, at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CROPPED = 96  # pixels of the shorter side from which images are cropped instead of shifted


def varied(pixels: Tensor) -> Tensor:
    """Images varied at random as suits their size: large ones cropped, small ones shifted.

    Args:
        pixels: `(N, C, H, W)` uint8.

    Returns:
        Images of the same shape.
    """
    return (cropped if min(pixels.shape[2:]) >= CROPPED else augmented)(pixels)


def cropped(pixels: Tensor, *, least: float = 0.35) -> Tensor:
    """A random part of every image at its full size, mirrored at random if it is in colour.

    Each image has a rectangle of its own, with sides in a ratio of 3/4 to 4/3, which is scaled
    bilinearly.

    Source: Szegedy et al., 2015, https://arxiv.org/abs/1409.4842, where the least share is 0.08.

    Args:
        pixels: `(N, C, H, W)` uint8.
        least: smallest share of the image's area; the largest is 1.

    Returns:
        Images of the same shape and type.
    """
    from torchvision.transforms.v2 import RandomResizedCrop
    from torchvision.transforms.v2.functional import resized_crop

    size, result = list(pixels.shape[2:]), torch.empty_like(pixels)
    for index, image in enumerate(pixels):
        box = RandomResizedCrop.get_params(image, [least, 1.0], [3 / 4, 4 / 3])
        result[index] = resized_crop(image, *box, size=size)
    return mirrored(result)


def augmented(pixels: Tensor) -> Tensor:
    """Images shifted by up to an eighth of their width, and mirrored if they are in colour.

    Args:
        pixels: `(N, C, H, W)` of any type; pixels shifted in are 0.

    Returns:
        Images of the same shape.
    """
    n, channels, height, width = pixels.shape
    most = width // 8
    padded = F.pad(pixels, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, n, 1), device=pixels.device)
    rows = down + torch.arange(height, device=pixels.device)
    columns = right + torch.arange(width, device=pixels.device)
    if channels == 3:
        mirror = torch.rand(n, 1, device=pixels.device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    index = torch.arange(n, device=pixels.device)[:, None, None]
    return padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def mirrored(pixels: Tensor) -> Tensor:
    """Images `(N, C, H, W)`, each mirrored at random if they are in colour."""
    if pixels.shape[1] != 3:
        return pixels
    flipped = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
    return torch.where(flipped, pixels.flip(3), pixels)
