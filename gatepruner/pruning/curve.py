"""The removal curve: accuracy against blocks removed, all of its points in shared passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import Accuracy, tally
from gatepruner.measuring.cost import Cost, count
from gatepruner.measuring.inputs import check_fit, normalization_of
from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.ranking import Ranking
from gatepruner.pruning.surgery import follow

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

    def to_json(self) -> dict[str, Any]:
        """The point as plain JSON; accuracies are fractions of 1."""
        counts = {"removed": self.removed, "blocks": self.blocks}
        return {**counts, **self.accuracy.to_json(), **asdict(self.cost)}


def sweep(
    checkpoint: Checkpoint,
    data: Images,
    ranking: Ranking,
    *,
    counts: Sequence[int] | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> Iterator[Point]:
    """Accuracy after every number of removals, least important block first.

    The networks of neighbouring points are the same up to their first difference: what they
    have in common is computed once. Along a path that was learned every point has its own state.

    Args:
        checkpoint: a network with its weights.
        data: labelled images of the network's size and classes.
        ranking: the order in which the blocks go.
        counts: numbers of blocks to remove; from none to all of them by default.
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
    check_fit(checkpoint.network, data)
    chosen = normalization_of(checkpoint.notes, data.shape[0], normalization)
    counts = range(len(ranking.names) + 1) if counts is None else counts
    if checkpoint.path and ranking.criterion == "gate":
        yield from _along_path(
            checkpoint, data, ranking, counts, (chosen, device, batch_size, track)
        )
        return
    networks = [checkpoint.network.without(ranking.first(removed)) for removed in counts]
    how = (device, batch_size, chosen, track)
    for removed, network, found in zip(
        counts, networks, _together(checkpoint, networks, data, *how), strict=True
    ):
        left = network.depth
        yield Point(removed, left, found, count(network))


def accuracies(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    data: Images,
    *,
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
        device: where to compute.
        batch_size: images at a time.
        normalization: instead of the one that the checkpoint records.
        track: wraps the batches of every pass, to show progress.

    Returns:
        One for each network, in their order.

    Raises:
        DataError: the images are of another size or class count.
    """
    check_fit(checkpoint.network, data)
    chosen = normalization_of(checkpoint.notes, data.shape[0], normalization)
    return list(_together(checkpoint, networks, data, device, batch_size, chosen, track))


def _together(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    data: Images,
    device: str | torch.device,
    batch_size: int,
    normalization: Normalization,
    track: Track,
) -> Iterator[Accuracy]:
    """Accuracies of the networks, so many in one pass as memory is thought to allow."""
    for start in range(0, len(networks), TOGETHER):
        module = merged(checkpoint, networks[start : start + TOGETHER])
        yield from tally(module, data, normalization, device, batch_size, track)


def _along_path(
    checkpoint: Checkpoint, data: Images, ranking: Ranking, counts: Sequence[int], how: Any
) -> Iterator[Point]:
    """The points of a path that was learned: each network has its own state, shared by none."""
    for removed in counts:
        small = follow(checkpoint, ranking.first(removed))
        (found,) = tally(small.build(), data, *how)
        left = small.network.depth
        yield Point(removed, left, found, count(small.network))
