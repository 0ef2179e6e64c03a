"""Passes over training images, for the criteria that need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.errors import DataError
from gatepruner.images.examples import Examples
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_fit, normalization_of
from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.criteria.criterion import Evidence


def images_of(evidence: Evidence) -> Examples:
    """The training images.

    Raises:
        DataError: there are none.
    """
    if evidence.images is None:
        raise DataError("this criterion needs training images: pass some")
    return evidence.images


def device_of(evidence: Evidence) -> torch.device:
    """The device to compute on."""
    return pick_device(evidence.device)


def batches(checkpoint: Checkpoint, evidence: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images `(B, C, H, W)` and their labels `(B,)`, on the device.

    Several processes share the batches.
    """
    data = images_of(evidence)
    normalization = normalization_of(checkpoint, data, evidence.normalization)
    size = evidence.batch_size
    starts = torch.arange(0, len(data), size)
    mine = processes.share(len(starts)).mine
    whole = [torch.arange(at, min(at + size, len(data))) for at in starts[mine].tolist()]
    indices, steps = torch.cat([*whole, torch.arange(0)]), range(len(whole))
    parts = data.to(device_of(evidence)).batches(indices, size)
    for _, (pixels, labels) in zip(evidence.track(steps), parts, strict=True):
        yield normalization(pixels), labels


def losses(checkpoint: Checkpoint, networks: Sequence[Network], evidence: Evidence) -> list[float]:
    """The mean loss of several networks that share a checkpoint's weights, in one pass.

    Raises:
        DataError: the images have another number of classes.
    """
    data = images_of(evidence)
    check_fit(checkpoint, data)
    normalization = normalization_of(checkpoint, data, evidence.normalization)
    module, device = merged(checkpoint, networks), device_of(evidence)
    measured = tally(module, data, normalization, device, evidence.batch_size, evidence.track)
    return [accuracy.loss for accuracy in measured]
