"""Passes over training images, as criteria make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.images import Images
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_fit, normalization_of
from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.criteria.criterion import Evidence


def images_of(evidence: Evidence) -> Images:
    """The training images.

    Raises:
        DataError: there are none.
    """
    if evidence.images is None:
        raise DataError("this criterion looks at training images: none were given")
    return evidence.images


def device_of(evidence: Evidence) -> torch.device:
    """The device to compute on."""
    device = evidence.device
    return pick_device(device) if isinstance(device, str) else device


def batches(checkpoint: Checkpoint, evidence: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images `(B, C, H, W)` and their labels `(B,)`, on the device."""
    data = images_of(evidence)
    normalization = normalization_of(checkpoint.notes, data.shape[0], evidence.normalization)
    size, indices = evidence.batch_size, torch.arange(len(data))
    steps = range(0, len(data), size)
    found = data.to(device_of(evidence)).batches(indices, size)
    for _, (pixels, labels) in zip(evidence.track(steps), found, strict=True):
        yield normalization(pixels), labels


def losses(checkpoint: Checkpoint, networks: Sequence[Network], evidence: Evidence) -> list[float]:
    """Mean cross-entropy of several networks with weights of one checkpoint, in one pass.

    Raises:
        DataError: the images are of other classes.
    """
    data = images_of(evidence)
    check_fit(checkpoint.network, data)
    normalization = normalization_of(checkpoint.notes, data.shape[0], evidence.normalization)
    module, device = merged(checkpoint, networks), device_of(evidence)
    found = tally(module, data, normalization, device, evidence.batch_size, evidence.track)
    return [accuracy.loss for accuracy in found]
