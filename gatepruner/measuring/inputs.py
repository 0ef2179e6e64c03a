"""Whether images are what a network takes, and how they are normalised for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatepruner.errors import DataError, TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import IMAGENET, Normalization
from gatepruner.networks.network import Network


def normalization_of(
    notes: Mapping[str, Any], channels: int, chosen: Normalization | None = None
) -> Normalization:
    """The normalisation a checkpoint records; ImageNet's if it records none.

    Args:
        notes: of the checkpoint.
        channels: of its images.
        chosen: one that the caller chooses instead.

    Raises:
        DataError: it is for another number of channels.
    """
    found = chosen or IMAGENET
    if chosen is None and "normalize" in notes:
        recorded = notes["normalize"]
        found = Normalization(tuple(recorded["mean"]), tuple(recorded["std"]), "the checkpoint's")
    if {len(found.mean), len(found.std)} != {channels}:
        raise DataError(
            f"{found.source} normalisation has {len(found.mean)} channels, the images have "
            f"{channels}: choose a normalisation of {channels} channels"
        )
    return found


def check_size(network: Network, data: Images) -> None:
    """Raise a `DataError` if the images are of another size."""
    if data.shape != network.base.input_shape:
        raise DataError(
            f"{data.source} has images of {data.shape} (channels, height, width): "
            f"{network} takes {network.base.input_shape}"
        )


def check_fit(network: Network, data: Images) -> None:
    """Raise a `DataError` if the images are of another size or class count."""
    check_size(network, data)
    if len(data.classes) != network.num_classes:
        raise DataError(
            f"{data.source} has {len(data.classes)} classes: {network} tells "
            f"{network.num_classes} apart"
        )


def check_batch(data: Images, batch_size: int) -> None:
    """Raise a `TrainingError` if the images do not fill one batch to learn from."""
    if len(data) < batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images, fewer than one batch of {batch_size}",
            batch_size=len(data),
        )
