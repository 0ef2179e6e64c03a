"""Recoverability of blocks, as PRACTISE measures it, with all weights learning.

Source: Wang, Wu, 2023, https://arxiv.org/abs/2202.06488, where 1x1 convolutions around the removed
block learn instead. Orders are not weighted by latency here: all plans have equally many blocks.
"""

from __future__ import annotations

from dataclasses import replace

import gatepruner


def recoverability(
    whole: gatepruner.Checkpoint, pictures: gatepruner.Images, steps: int, device: str = "cpu"
) -> dict[str, float]:
    """The distance of the features that is left when a block alone is removed, for every block.

    Args:
        whole: the trained network.
        pictures: to recover from by features, and to measure the distance on.
        steps: of 64 pictures, of recovery.
        device: where to compute.
    """
    return {name: _left(whole, pictures, name, steps, device) for name in whole.network.removable}


def _left(
    whole: gatepruner.Checkpoint, pictures: gatepruner.Images, name: str, steps: int, device: str
) -> float:
    batch = min(64, len(pictures))
    epochs = max(1, round(steps / (len(pictures) // batch)))
    recipe = replace(gatepruner.FINE_TUNING, epochs=epochs, batch_size=batch)
    small = gatepruner.remove(whole, name)
    small = gatepruner.recalibrate(small, pictures, whole=whole, device=device)
    small = gatepruner.finetune(small, pictures, recipe, teacher=whole, device=device)
    distance = gatepruner.agreement(small, whole, pictures, device=device).distance
    if distance is None:
        raise ValueError(f"{whole.network} has no features to compare")
    return distance
