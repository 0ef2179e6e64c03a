"""Whether images fit a network, and how to normalise them for it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from gatepruner import processes
from gatepruner.errors import DataError, TrainingError, listed
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import PREPARED, Normalization
from gatepruner.images.preprocessing import preprocessing_of
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.onnx_file import OnnxFile, OnnxNetwork, Subject


def normalization_of(
    checkpoint: Subject, data: Examples, chosen: Normalization | None = None
) -> Normalization:
    """The normalisation that images get for a network; see `preprocessing_of`.

    Args:
        checkpoint: the network with its notes.
        data: the images.
        chosen: replaces the network's own.

    Raises:
        DataError: the normalisation has another number of channels.
    """
    if data.prepared:
        return PREPARED
    normalization, channels = chosen or preprocessing_of(checkpoint).normalization, data.shape[0]
    if {len(normalization.mean), len(normalization.std)} != {channels}:
        raise DataError(
            f"{normalization.source} normalisation has {len(normalization.mean)} channels, the "
            f"images have {channels}: choose a normalisation with {channels} channels"
        )
    return normalization


def check_size(network: Network | OnnxNetwork, data: Examples) -> None:
    """Raise a `DataError` if the images have another size than the network takes."""
    if data.shape != network.base.input_shape:
        raise DataError(
            f"{data.source} has images of {data.shape} (channels, height, width): "
            f"{network} takes {network.base.input_shape}"
        )


def check_shared(verb: str, checkpoint: Subject, *sets: Examples | None, **arguments: Any) -> None:
    """Make sure that all processes call the same verb for the same network and images.

    Args:
        verb: what they do, in words.
        checkpoint: the network.
        sets: sets of images, of which the processes share each.
        arguments: what else has to be equal in all of them.

    Raises:
        ProcessError: one of them does something else, or does not come.
    """

    def facts() -> dict[str, Any]:
        images = {
            f"set {number} of images": f"{len(data)} of {data.source} ({data.fingerprint})"
            for number, data in enumerate(sets, 1)
            if data is not None
        }
        given = {"network": checkpoint, **arguments}
        networks = {
            name: f"{one.network} ({one.fingerprint[:16]})"
            for name, one in given.items()
            if isinstance(one, (Checkpoint, OnnxFile))
        }
        return {**given, **networks, **images}

    processes.meet(verb, facts)


def check_fit(checkpoint: Subject, data: Examples) -> None:
    """Raise a `DataError` if images are of another size or other classes, or have no labels."""
    check_size(checkpoint.network, data)
    if not data.labelled:
        raise DataError(
            f"{data.source} has no labels: accuracy and learning from labels need images in a "
            "folder for each class, imagefolder:DIR"
        )
    (_check_classes if data.task.classes else _check_targets)(checkpoint, data)


def _check_classes(checkpoint: Subject, data: Examples) -> None:
    network, own = checkpoint.network, data.classes
    if not own:
        raise DataError(
            f"{data.source} does not say how many classes it has: {network} has "
            f"{network.num_classes}",
            classes=network.num_classes,
        )
    if len(own) != network.num_classes:
        hint = "; to use the images without labels: pictures:DIR"
        raise DataError(
            f"{data.source} has {len(own)} classes: {network} has {network.num_classes}"
            + (hint if data.source.startswith("imagefolder:") else "")
        )
    known = {str(name): at for at, name in enumerate(checkpoint.notes.get("classes", ()))}
    moved = [name for at, name in enumerate(own) if known.get(name, at) != at]
    if moved:
        raise DataError(
            f"{data.source} has the classes of {network} in another order: {listed(moved, 4)}; use "
            "map_classes(images, checkpoint)"
        )


def _check_targets(checkpoint: Subject, data: Examples) -> None:
    """Raise a `DataError` if the task has no loss for outputs of the network and the targets."""
    ((_, targets),) = data.batches(torch.zeros(2, dtype=torch.int64), 2)
    outputs = torch.zeros(2, checkpoint.network.num_classes, device=targets.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are broadcast: refused below
            shape = tuple(data.task.loss(outputs, targets, reduction="none").shape)
        problem = f"has the shape {shape}, expected {tuple(outputs.shape)} or (2,)"
        fits = shape in ((2,), tuple(outputs.shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        problem, fits = f"fails: {error}", False
    if not fits:
        raise DataError(
            f"{data.source}: the loss of {data.task.name}, with reduction none, for outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)} {problem}"
        )


def check_several(data: Examples) -> None:
    """Raise a `DataError` if there are too few images to estimate batch-norm statistics."""
    if len(data) < 2:
        raise DataError(
            f"cannot estimate batch-norm statistics: expected at least 2 images, {data.source} has "
            f"{len(data)}"
        )
    if len(data) < processes.count():
        raise DataError(
            f"cannot share {len(data)} images of {data.source} among {processes.count()} "
            "processes: expected one for each; use fewer processes"
        )


def check_batch(data: Examples, batch_size: int) -> None:
    """Raise a `TrainingError` if there are fewer images than one batch."""
    if len(data) < batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images, fewer than one batch of {batch_size}",
            **({"batch_size": len(data)} if len(data) > 1 else {}),
        )
    if batch_size < 2 * processes.count() > 2:
        raise TrainingError(
            f"cannot share a batch of {batch_size} images among {processes.count()} processes: "
            "expected at least 2 for each",
            batch_size=2 * processes.count(),
        )
