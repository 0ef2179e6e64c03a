"""The removal curve: accuracy against blocks removed, with all its points in shared passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import Accuracy, heads, tally
from gatepruner.measuring.cost import Cost, count
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import (
    check_fit,
    check_several,
    check_shared,
    check_size,
    normalization_of,
)
from gatepruner.measuring.merging import merged, with_own_statistics
from gatepruner.measuring.recalibration import (
    MEMORY,
    Views,
    estimate,
    most_images,
    recalibrate,
    seen_augmented,
)
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.norms import shares_statistics
from gatepruner.pruning.ranking import Ranking
from gatepruner.pruning.surgery import prune

TOGETHER = 32  # networks per pass; more need more memory for activations


@dataclass(frozen=True)
class Point:
    """One point of a removal curve.

    Attributes:
        removed: number of blocks removed, the least important of a ranking.
        blocks: number of blocks left with a branch.
        accuracy: accuracy and loss of the network without them.
        cost: parameters and MACs of that network.
    """

    removed: int
    blocks: int
    accuracy: Accuracy
    cost: Cost

    @classmethod
    def of(cls, removed: int, network: Network, accuracy: Accuracy) -> Point:
        """The point of a network from which `removed` blocks were removed."""
        return cls(removed, network.depth, accuracy, count(network))

    def to_json(self) -> dict[str, Any]:
        """The point as plain JSON; accuracies are fractions of 1."""
        counts = {"removed": self.removed, "blocks": self.blocks}
        return {**counts, **self.accuracy.to_json(), **asdict(self.cost)}


@dataclass(frozen=True)
class Measurement:
    """How the accuracy of every network of a curve is measured.

    Attributes:
        data: labelled images to measure on.
        statistics: training images to recalibrate batch norm on first, if any.
        normalization: of both.
        device: where to compute.
        batch_size: images per batch.
        track: wraps the batches of every pass, to show progress.
        augment: whether to recalibrate on augmented images.
    """

    data: Examples
    statistics: Examples | None
    normalization: Normalization
    device: torch.device
    batch_size: int
    track: Track
    augment: bool

    def tally(self, module: nn.Module) -> list[Accuracy]:
        """The accuracy of every network merged into a module."""
        return tally(
            module, self.data, self.normalization, self.device, self.batch_size, self.track
        )

    def tallies(self, modules: Iterable[fx.GraphModule]) -> Iterator[Accuracy]:
        """The accuracy of every network of several modules.

        If images are read anew in every pass, the modules share one.
        """
        if self.data.in_memory:
            for module in modules:
                yield from self.tally(module)
        else:
            yield from self.tally(_Several(modules))

    def together(self, checkpoint: Checkpoint) -> int:
        """How many networks with weights of their own are measured in a pass."""
        size = sum(tensor.nbytes for tensor in checkpoint.weights.values())
        return 1 if self.data.in_memory else min(max(MEMORY // size, 1), TOGETHER)


class _Several(nn.Module):
    """Several modules as one, which returns the logits of all their networks."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.several = nn.ModuleList(modules)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits for module in self.several for logits in heads(module(images)))


def sweep(
    checkpoint: Checkpoint,
    data: Examples,
    ranking: Ranking,
    *,
    counts: Sequence[int] | None = None,
    statistics: Examples | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> Iterator[Point]:
    """Measure accuracy against blocks removed, least important block first.

    The networks of all points share passes over the images, which compute common parts once,
    batch-norm statistics included. Along a learned path every network has its own weights and is
    measured alone, unless the images are decoded anew in every pass. Several processes share the
    images: each passes all of them, and takes its part.

    Args:
        checkpoint: a network with its weights.
        data: labelled images of the network's size and classes.
        ranking: the order in which to remove the blocks.
        counts: numbers of units to remove; by default from none to all, or those after which the
            others adapted, along a path with slices.
        statistics: training images to recalibrate batch norm on after a removal, as `recalibrate`
            does; by default it is not recalibrated.
        device: where to compute.
        batch_size: images per batch.
        normalization: replaces the one that the checkpoint records.
        track: wraps the batches of every pass, to show progress.

    Yields:
        The points in the order of `counts`.

    Raises:
        DataError: the images have another size or number of classes.
        ProcessError: the processes do different things.
        PlanError: a count exceeds the number of ranked blocks.
    """
    how = _measurement(checkpoint, data, statistics, device, batch_size, normalization, track)
    if counts is None:
        sliced = ranking.learned and checkpoint.path.sliced
        counts = checkpoint.path.turns if sliced else range(len(ranking.names) + 1)
    if ranking.learned:
        most = how.together(checkpoint)
        for start in range(0, len(counts), most):
            yield from _along(checkpoint, ranking, counts[start : start + most], how)
        return
    networks = [checkpoint.network.without(ranking.first(removed)) for removed in counts]
    measured = _together(checkpoint, networks, how)
    for removed, network, accuracy in zip(counts, networks, measured, strict=True):
        yield Point.of(removed, network, accuracy)


def accuracies(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    data: Examples,
    *,
    statistics: Examples | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> list[Accuracy]:
    """Measure several networks that share a checkpoint's weights, in shared passes.

    Several processes share the images, as in `sweep`.

    Args:
        checkpoint: the whole network with its weights.
        networks: the whole network after some removals of branches or shortcuts.
        data: labelled images of the network's size and classes.
        statistics: training images to recalibrate every network on; see `sweep`.
        device: where to compute.
        batch_size: images per batch.
        normalization: replaces the one that the checkpoint records.
        track: wraps the batches of every pass, to show progress.

    Returns:
        The accuracies in the order of the networks.

    Raises:
        DataError: the images have another size or number of classes.
        ProcessError: the processes do different things.
    """
    how = _measurement(checkpoint, data, statistics, device, batch_size, normalization, track)
    return list(_together(checkpoint, networks, how))


def _measurement(
    checkpoint: Checkpoint,
    data: Examples,
    statistics: Examples | None,
    device: str | torch.device,
    batch_size: int,
    normalization: Normalization | None,
    track: Track,
) -> Measurement:
    """How to measure; raises a `DataError` if the images do not fit."""
    check_shared("sweep", checkpoint, data, statistics, normalization=normalization)
    check_fit(checkpoint, data)
    if statistics is not None:
        check_size(checkpoint.network, statistics)
        check_several(statistics)
    normalization = normalization_of(checkpoint, data, normalization)
    device = pick_device(device)
    augment = statistics is not None and seen_augmented(
        checkpoint, statistics, normalization, device
    )
    return Measurement(data, statistics, normalization, device, batch_size, track, augment)


def _along(
    checkpoint: Checkpoint, ranking: Ranking, counts: Sequence[int], how: Measurement
) -> Iterator[Point]:
    """The points of a learned path after so many removals."""
    smalls = [prune(checkpoint, ranking, removed) for removed in counts]
    measured = how.tallies(_alone(checkpoint.network, small, how) for small in smalls)
    for removed, small, accuracy in zip(counts, smalls, measured, strict=True):
        yield Point.of(removed, small.network, accuracy)


def _alone(whole: Network, small: Checkpoint, how: Measurement) -> fx.GraphModule:
    """A network with its own weights, recalibrated if anything was removed."""
    if how.statistics is not None and small.network != whole:
        small = recalibrate(
            small,
            how.statistics,
            device=how.device,
            normalization=how.normalization,
            augment=how.augment,
        )
    return small.build()


def _together(
    checkpoint: Checkpoint, networks: Sequence[Network], how: Measurement
) -> Iterator[Accuracy]:
    """The accuracies of the networks, `TOGETHER` networks per pass."""
    for start in range(0, len(networks), TOGETHER):
        group = networks[start : start + TOGETHER]
        if how.statistics is None:
            yield from how.tally(merged(checkpoint, group))
            continue
        pruned = [network for network in group if network != checkpoint.network]
        wholes = [checkpoint.build()] if len(pruned) < len(group) else []
        measured = how.tallies(chain(wholes, _recalibrated(checkpoint, pruned, how)))
        whole = [next(measured) for _ in wholes]
        for network in group:
            yield whole[0] if network == checkpoint.network else next(measured)


def _recalibrated(
    checkpoint: Checkpoint, networks: Sequence[Network], how: Measurement
) -> Iterator[fx.GraphModule]:
    """The recalibrated networks, merged into one module if their activations fit."""
    assert how.statistics is not None
    # Uses of one batch norm in one network belong together, and merging would take them apart.
    if len(networks) == 1 or shares_statistics(checkpoint.network.build_blank()):
        for network in networks:
            weights = {key: checkpoint.weights[key] for key in network.state()}
            small = replace(checkpoint, network=network, weights=weights)
            yield _alone(checkpoint.network, small, how)
    elif networks:
        module = with_own_statistics(merged(checkpoint, networks))
        if len(how.statistics) > most_images(module, how.statistics, MEMORY):
            middle = len(networks) // 2
            yield from _recalibrated(checkpoint, networks[:middle], how)
            yield from _recalibrated(checkpoint, networks[middle:], how)
            return
        views = Views(how.statistics.to(how.device), how.normalization)
        estimate(module, views(how.augment), how.device, how.track)
        yield module
