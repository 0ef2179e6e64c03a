"""Augmentation: images shifted and mirrored at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
