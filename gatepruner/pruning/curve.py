"""The removal curve: accuracy against blocks removed, all of its points in shared passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx

from gatepruner.errors import DataError
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import Accuracy, tally
from gatepruner.measuring.cost import Cost, count
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_fit, check_size, normalization_of
from gatepruner.measuring.merging import merged, with_own_statistics
from gatepruner.measuring.recalibration import (
    MEMORY,
    Views,
    estimate,
    peak,
    recalibrate,
    seen_augmented,
)
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.ranking import Ranking
from gatepruner.pruning.surgery import prune

TOGETHER = 32  # points that share one pass; more hold more activations in memory


@dataclass(frozen=True)
class Point:
    """One point of a removal curve.

    Attributes:
        removed: blocks removed, the least important ones of the ranking.
        blocks: blocks that still have their branch.
        accuracy: on the images of the sweep.
        cost: parameters and MACs.
    """

    removed: int
    blocks: int
    accuracy: Accuracy
    cost: Cost

    @classmethod
    def of(cls, removed: int, network: Network, accuracy: Accuracy) -> Point:
        """The point of a network from which so many blocks were removed."""
        return cls(removed, network.depth, accuracy, count(network))

    def to_json(self) -> dict[str, Any]:
        """The point as plain JSON; accuracies are fractions of 1."""
        counts = {"removed": self.removed, "blocks": self.blocks}
        return {**counts, **self.accuracy.to_json(), **asdict(self.cost)}


@dataclass(frozen=True)
class Measurement:
    """What points are measured on, and how.

    Attributes:
        data: labelled images that accuracy is measured on.
        statistics: training images that batch norm is recalibrated on first, if any.
        normalization: of both.
        device: where to compute.
        batch_size: images at a time.
        track: wraps the batches of every pass, to show progress.
        augment: whether statistics are those of shifted images.
    """

    data: Images
    statistics: Images | None
    normalization: Normalization
    device: torch.device
    batch_size: int
    track: Track
    augment: bool

    def tally(self, module: fx.GraphModule) -> list[Accuracy]:
        """Accuracy of every head of a module."""
        how = (self.normalization, self.device, self.batch_size, self.track)
        return tally(module, self.data, *how)


def sweep(
    checkpoint: Checkpoint,
    data: Images,
    ranking: Ranking,
    *,
    counts: Sequence[int] | None = None,
    statistics: Images | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> Iterator[Point]:
    """Accuracy after every number of removals, least important block first.

    The networks of neighbouring points are the same up to their first difference: what they
    have in common is computed once, statistics of batch norm too. Along a learned path every
    point has weights of its own.

    Args:
        checkpoint: a network with its weights.
        data: labelled images of the network's size and classes.
        ranking: the order in which the blocks go.
        counts: numbers of blocks to remove; from none to all of them by default.
        statistics: training images on which batch norm is recalibrated wherever a block was
            removed, as `recalibrate` does; left as it is by default.
        device: where to compute.
        batch_size: images at a time.
        normalization: instead of the one that the checkpoint records.
        track: wraps the batches of every pass, to show progress.

    Yields:
        The points in the order of `counts`.

    Raises:
        DataError: the images are of another size or class count.
        PlanError: more blocks are to be removed than there are.
    """
    how = _measurement(checkpoint, data, statistics, device, batch_size, normalization, track)
    counts = range(len(ranking.names) + 1) if counts is None else counts
    if ranking.learned:
        for removed in counts:
            small = prune(checkpoint, ranking, removed)
            yield Point.of(removed, small.network, _alone(checkpoint.network, small, how))
        return
    networks = [checkpoint.network.without(ranking.first(removed)) for removed in counts]
    measured = _together(checkpoint, networks, how)
    for removed, network, accuracy in zip(counts, networks, measured, strict=True):
        yield Point.of(removed, network, accuracy)


def accuracies(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    data: Images,
    *,
    statistics: Images | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> list[Accuracy]:
    """Accuracy of several networks with weights of one checkpoint, equal parts computed once.

    Args:
        checkpoint: the whole network with its weights.
        networks: what is left of it after some removals, of branches or of shortcuts.
        data: labelled images of the network's size and classes.
        statistics: as for `sweep`.
        device: where to compute.
        batch_size: images at a time.
        normalization: instead of the one that the checkpoint records.
        track: wraps the batches of every pass, to show progress.

    Returns:
        One for each network, in their order.

    Raises:
        DataError: the images are of another size or class count.
    """
    how = _measurement(checkpoint, data, statistics, device, batch_size, normalization, track)
    return list(_together(checkpoint, networks, how))


def _measurement(
    checkpoint: Checkpoint,
    data: Images,
    statistics: Images | None,
    device: str | torch.device,
    batch_size: int,
    normalization: Normalization | None,
    track: Track,
) -> Measurement:
    """How to measure, if the images fit."""
    check_fit(checkpoint.network, data)
    if statistics is not None:
        check_size(checkpoint.network, statistics)
        if len(statistics) < 2:
            raise DataError(f"{statistics.source} has 1 image: statistics take at least 2")
    chosen = normalization_of(checkpoint.notes, data.shape[0], normalization)
    device = pick_device(device) if isinstance(device, str) else device
    augment = statistics is not None and seen_augmented(checkpoint, statistics, chosen, device)
    return Measurement(data, statistics, chosen, device, batch_size, track, augment)


def _alone(whole: Network, small: Checkpoint, how: Measurement) -> Accuracy:
    """The accuracy of a network with weights of its own, recalibrated if anything was removed."""
    if how.statistics is not None and small.network != whole:
        small = recalibrate(
            small,
            how.statistics,
            device=how.device,
            normalization=how.normalization,
            augment=how.augment,
        )
    return how.tally(small.build())[0]


def _together(
    checkpoint: Checkpoint, networks: Sequence[Network], how: Measurement
) -> Iterator[Accuracy]:
    """Accuracies of the networks, as many in one pass as memory is thought to allow."""
    for start in range(0, len(networks), TOGETHER):
        group = networks[start : start + TOGETHER]
        if how.statistics is None:
            yield from how.tally(merged(checkpoint, group))
            continue
        pruned = [network for network in group if network != checkpoint.network]
        measured = _recalibrated(checkpoint, pruned, how)
        for network in group:
            whole = network == checkpoint.network
            yield how.tally(checkpoint.build())[0] if whole else next(measured)


def _recalibrated(
    checkpoint: Checkpoint, networks: Sequence[Network], how: Measurement
) -> Iterator[Accuracy]:
    """Accuracies of the networks, each recalibrated; in one pass if their activations fit."""
    assert how.statistics is not None
    if len(networks) == 1:
        weights = {key: checkpoint.weights[key] for key in networks[0].state()}
        yield _alone(
            checkpoint.network, replace(checkpoint, network=networks[0], weights=weights), how
        )
    elif networks:
        module = with_own_statistics(merged(checkpoint, networks))
        if len(how.statistics) * peak(module, how.data.shape) > MEMORY:
            middle = len(networks) // 2
            yield from _recalibrated(checkpoint, networks[:middle], how)
            yield from _recalibrated(checkpoint, networks[middle:], how)
            return
        views = Views(how.statistics.to(how.device), how.normalization)
        estimate(module, views(how.augment), how.device, how.track)
        yield from how.tally(module)
