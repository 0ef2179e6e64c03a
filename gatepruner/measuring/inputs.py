"""Whether images fit a network, and how to normalise them for it."""

from __future__ import annotations

from gatepruner.errors import DataError, TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.images.preprocessing import preprocessing_of
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network


def normalization_of(
    checkpoint: Checkpoint, data: Images, chosen: Normalization | None = None
) -> Normalization:
    """The normalisation that images get for a network; see `preprocessing_of`.

    Args:
        checkpoint: the network with its notes.
        data: the images.
        chosen: replaces the network's own.

    Raises:
        DataError: the normalisation has another number of channels.
    """
    normalization, channels = chosen or preprocessing_of(checkpoint).normalization, data.shape[0]
    if {len(normalization.mean), len(normalization.std)} != {channels}:
        raise DataError(
            f"{normalization.source} normalisation has {len(normalization.mean)} channels, the "
            f"images have {channels}: choose a normalisation with {channels} channels"
        )
    return normalization


def check_size(network: Network, data: Images) -> None:
    """Raise a `DataError` if the images have another size than the network takes."""
    if data.shape != network.base.input_shape:
        raise DataError(
            f"{data.source} has images of {data.shape} (channels, height, width): "
            f"{network} takes {network.base.input_shape}"
        )


def check_fit(network: Network, data: Images) -> None:
    """Raise a `DataError` if the images have another size or number of classes, or no labels."""
    check_size(network, data)
    if not data.labelled:
        raise DataError(
            f"{data.source} has no labels: accuracy and learning from labels need images in a "
            "folder for each class, imagefolder:DIR"
        )
    if len(data.classes) != network.num_classes:
        hint = "; to use the images without labels: pictures:DIR"
        raise DataError(
            f"{data.source} has {len(data.classes)} classes: {network} has {network.num_classes}"
            + (hint if data.source.startswith("imagefolder:") else "")
        )


def check_several(data: Images) -> None:
    """Raise a `DataError` if there are too few images to estimate batch-norm statistics."""
    if len(data) < 2:
        raise DataError(
            f"cannot estimate batch-norm statistics: expected at least 2 images, {data.source} has "
            f"{len(data)}"
        )


def check_batch(data: Images, batch_size: int) -> None:
    """Raise a `TrainingError` if there are fewer images than one batch."""
    if len(data) < batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images, fewer than one batch of {batch_size}",
            **({"batch_size": len(data)} if len(data) > 1 else {}),
        )
