"""What several commands measure, as plain JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatepruner.cli.options import Data

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.network import Network
    from gatepruner.pruning.meter import Meter
    from gatepruner.report.terminal import Terminal


def meter_of(whole: Network, how: Data, batch: int, terminal: Terminal) -> Meter:
    """What tells the costs of a network and of what is left of it."""
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.meter import Meter

    device, track = pick_device(how.device), terminal.track("measuring latency")
    return Meter(whole, device, batch, track=track)


def latencies(meter: Meter, small: Checkpoint) -> dict[str, dict[str, Any]]:
    """Measured times of the whole network and of a smaller one."""
    times = meter.latencies([meter.whole, small.network])
    return {name: asdict(one) for name, one in zip(("whole", "pruned"), times, strict=True)}


def change(whole: Checkpoint, small: Checkpoint) -> dict[str, Any]:
    """Blocks, parameters and MACs before and after."""
    from gatepruner.measuring.cost import count

    sizes: dict[str, Any] = {}
    for name, network in (("before", whole.network), ("after", small.network)):
        cost = count(network)
        counts = {"blocks": network.depth, "params": cost.params, "macs": cost.macs}
        sizes |= {f"{what}_{name}": number for what, number in counts.items()}
    return sizes
