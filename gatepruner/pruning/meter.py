"""What networks cost, each found out once: counted, or measured beside the whole network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency, latency
from gatepruner.networks.network import Network


@dataclass(frozen=True)
class Meter:
    """Costs of a network and of what is left of it after removals.

    A network's latency is measured once, in turns with the whole network's, and scaled by how
    much faster or slower the whole one was than when it was measured first: so all latencies
    compare, though a machine's speed drifts, and one network has one number.

    Attributes:
        whole: the network that all are compared with.
        device: where latency is measured.
        batch: images in one pass when it is.
        seconds: how long to measure a group of networks, about.
        known: latencies by the edits of their network, as JSON; filled as they are measured, and
            given back to a new meter where a run is resumed.
        track: wraps the rounds of a measurement, to show progress.
    """

    whole: Network
    device: str | torch.device = "cpu"
    batch: int = 1
    seconds: float = 2.0
    known: dict[str, Latency] = field(default_factory=dict)
    track: Callable[[Iterable[int]], Iterable[int]] = iter

    def cost(self, kind: str, network: Network) -> float:
        """The cost of one network: `"macs"`, `"params"`, or `"latency"` in seconds."""
        return self.costs(kind, [network])[0]

    def costs(self, kind: str, networks: Sequence[Network]) -> list[float]:
        """The cost of every network; those whose latency is new are measured in turns."""
        if kind != "latency":
            return [float(getattr(count(network), kind)) for network in networks]
        return [one.median for one in self.latencies(networks)]

    def latencies(self, networks: Sequence[Network]) -> list[Latency]:
        """The latency of every network; those that are new are measured in turns."""
        new = {_key(network): network for network in networks}
        new = {key: network for key, network in new.items() if key not in self.known}
        if new:
            self._measure({_key(self.whole): self.whole, **new})
        return [self.known[_key(network)] for network in networks]

    def savings(self, kind: str) -> dict[str, float]:
        """What the removal of each removable block alone saves."""
        names = self.whole.removable
        whole, *small = self.costs(
            kind, [self.whole, *(self.whole.without([name]) for name in names)]
        )
        return {name: whole - one for name, one in zip(names, small, strict=True)}

    def _measure(self, networks: dict[str, Network]) -> None:
        weights = self.whole.initial_weights()
        modules = {}
        for key, network in networks.items():
            fresh = {} if network.state().keys() <= weights.keys() else network.initial_weights()
            given = {name: {**fresh, **weights}[name] for name in network.state()}
            modules[key] = network.build(given)
        shape, how = self.whole.base.input_shape, {"batch": self.batch, "device": self.device}
        first = latency(modules, shape, runs=1, **how)  # type: ignore[arg-type]
        rounds = self.seconds / max(sum(one.median for one in first.values()), 1e-9)
        runs = min(max(int(rounds), 10), 300)
        measured = latency(modules, shape, runs=runs, track=self.track, **how)  # type: ignore[arg-type]
        whole = _key(self.whole)
        reference = self.known.get(whole, measured[whole]).median
        drift = reference / measured[whole].median
        for key, one in measured.items():
            self.known.setdefault(key, one.scaled(drift))


def _key(network: Network) -> str:
    return json.dumps(network.to_json()["edits"])


def savings(
    network: Network, cost: str, device: str | torch.device = "cpu", batch: int = 1
) -> dict[str, float]:
    """What the removal of each removable block alone saves.

    Args:
        network: of which a block is removed.
        cost: `"params"`, `"macs"`, or `"latency"`, in seconds, measured with random weights.
        device: where latency is measured.
        batch: images in one pass when it is.
    """
    return Meter(network, device, batch).savings(cost)
