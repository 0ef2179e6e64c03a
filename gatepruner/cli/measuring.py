"""What several commands measure, with progress shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatepruner.cli.options import Data

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.measuring.accuracy import Accuracy
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.network import Network
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.meter import Meter
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


def curve(
    checkpoint: Checkpoint,
    ranking: Ranking,
    images: Images,
    how: Data,
    terminal: Terminal,
    *,
    statistics: Images | None = None,
) -> list[Point]:
    """The removal curve of a ranking."""
    from gatepruner.pruning.curve import sweep

    points = sweep(
        checkpoint,
        images,
        ranking,
        statistics=statistics,
        device=how.device,
        batch_size=how.batch_size,
        normalization=how.chosen,
        track=terminal.track(f"removing by {ranking.criterion}"),
    )
    return list(points)


def measured(
    checkpoint: Checkpoint, images: Images, how: Data, terminal: Terminal, what: str
) -> Accuracy:
    """The accuracy of a network."""
    from gatepruner.measuring.accuracy import accuracy

    return accuracy(
        checkpoint,
        images,
        device=how.device,
        batch_size=how.batch_size,
        normalization=how.chosen,
        track=terminal.track(what),
    )


def recalibrated(
    small: Checkpoint,
    images: Images,
    how: Data,
    terminal: Terminal,
    *,
    augment: bool | None = None,
    whole: Checkpoint | None = None,
) -> Checkpoint:
    """The network with the batch-norm statistics of these images."""
    from gatepruner.measuring.recalibration import recalibrate

    return recalibrate(
        small,
        images,
        device=how.device,
        batch_size=how.batch_size,
        normalization=how.chosen,
        augment=augment,
        whole=whole,
        track=terminal.track("recalibrating"),
    )


def meter_of(whole: Network, how: Data, batch: int, terminal: Terminal) -> Meter:
    """What tells the costs of a network and of what is left of it."""
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.meter import Meter

    device, track = pick_device(how.device), terminal.track("measuring latency")
    return Meter(whole, device, batch, track=track)


def latencies(meter: Meter, small: Checkpoint) -> dict[str, dict[str, Any]]:
    """Measured times of the whole network and of a smaller one, as plain JSON."""
    times: Sequence[Any] = meter.latencies([meter.whole, small.network])
    return {name: asdict(one) for name, one in zip(("whole", "pruned"), times, strict=True)}
