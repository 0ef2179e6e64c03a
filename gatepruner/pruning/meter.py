"""The meter: costs of networks, each counted or measured only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from gatepruner.errors import PlanError
from gatepruner.measuring.cost import alike, count
from gatepruner.measuring.engines import device_of, engine_named, threads_of
from gatepruner.measuring.latency import Latency, latency
from gatepruner.networks.network import Network

KINDS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Meter:
    """Costs of a network before and after removals.

    The latency of a network is measured once, in turns with the whole network. It is scaled by
    the whole network's first latency over its present one, so that latencies can be compared
    although the speed of a machine drifts.

    What a block saves in latency is measured once for all blocks that do the same work, by removing
    all of these: preparing a network for an engine takes seconds, and more blocks stand out more
    from the noise. `docs/deployment.md` says how well the sums of these savings foretell latencies.

    Of several processes the first one measures, and all of them ask for it: a latency that only
    some of them knew would not be measured by all the next time.

    Attributes:
        whole: the whole network.
        device: where latency is measured.
        batch: images per pass when latency is measured.
        seconds: approximate time to measure a group of networks.
        known: measured latencies by the edits of their network as JSON; a resumed run passes
            those of the run before.
        track: wraps the rounds of a measurement, to show progress.
        engine: what runs the networks when latency is measured.
        threads: CPU threads when latency is measured; by default as many as PyTorch uses.
    """

    whole: Network
    device: str | torch.device = "cpu"
    batch: int = 1
    seconds: float = 2.0
    known: dict[str, Latency] = field(default_factory=dict)
    track: Callable[[Iterable[int]], Iterable[int]] = iter
    engine: str = "eager"
    threads: int | None = None

    def check(self) -> None:
        """Refuse to measure latency where it cannot be done.

        Raises:
            DeviceError: this machine does not have the device or so many threads.
            EngineError: the engine is unknown or not installed.
        """
        engine_named(self.engine)
        device_of(self.engine, self.device)
        threads_of(self.threads)

    def cost(self, kind: str, network: Network) -> float:
        """The cost of one network: `"macs"`, `"params"`, or `"latency"` in seconds."""
        return self.costs(kind, [network])[0]

    def costs(self, kind: str, networks: Sequence[Network]) -> list[float]:
        """The cost of every network; unknown latencies are measured in turns."""
        if kind not in KINDS:
            raise PlanError(f"unknown cost {kind!r}: expected {', '.join(KINDS)}")
        if kind != "latency":
            return [float(getattr(count(network), kind)) for network in networks]
        return [latency.median for latency in self.latencies(networks)]

    def latencies(self, networks: Sequence[Network]) -> list[Latency]:
        """The latency of every network; unknown ones are measured in turns."""
        new = {_key(network): network for network in networks}
        new = {key: network for key, network in new.items() if key not in self.known}
        if new:
            self._measure({_key(self.whole): self.whole, **new})
        return [self.known[_key(network)] for network in networks]

    def savings(self, kind: str) -> dict[str, float]:
        """What removing each removable block alone saves."""
        names = self.whole.removable
        groups = alike(self.whole) if kind == "latency" else [(name,) for name in names]
        networks = [self.whole, *(self.whole.without(group) for group in groups)]
        whole, *costs = self.costs(kind, networks)
        saved = {
            name: (whole - cost) / len(group)
            for group, cost in zip(groups, costs, strict=True)
            for name in group
        }
        return {name: saved[name] for name in names}

    def again(self, networks: Sequence[Network]) -> list[Latency]:
        """The latency of every network as measured anew, in turns."""
        measured = self._timed({str(at): network for at, network in enumerate(networks)})
        return [measured[str(at)] for at in range(len(networks))]

    def _measure(self, networks: dict[str, Network]) -> None:
        measured, whole = self._timed(networks), _key(self.whole)
        first = self.known.get(whole, measured[whole])
        for key, time in measured.items():
            self.known.setdefault(key, time.scaled(first.median / measured[whole].median))

    def _timed(self, networks: dict[str, Network]) -> dict[str, Latency]:
        """Latencies with the whole network's initial weights, as many rounds as there is time."""
        weights = self.whole.initial_weights()
        modules = {}
        for key, network in networks.items():
            fresh = {} if network.state().keys() <= weights.keys() else network.initial_weights()
            state = {**fresh, **weights}
            modules[key] = network.build(
                {  # of narrowed layers the first channels, which take the same time as any others
                    name: state[name][tuple(map(slice, tensor.shape))]
                    for name, tensor in network.state().items()
                }
            )
        return latency(
            modules,
            self.whole.base.input_shape,
            batch=self.batch,
            device=self.device,
            engine=self.engine,
            threads=self.threads,
            seconds=self.seconds,
            track=self.track,
        )


def _key(network: Network) -> str:
    return json.dumps(network.to_json()["edits"])


def savings(
    network: Network,
    cost: str,
    device: str | torch.device = "cpu",
    batch: int = 1,
    *,
    engine: str = "eager",
    threads: int | None = None,
) -> dict[str, float]:
    """What removing each removable block alone saves, by block name.

    Args:
        network: the whole network.
        cost: `"params"`, `"macs"`, or `"latency"` in seconds, measured with random weights.
        device: where latency is measured.
        batch: images per pass when latency is measured.
        engine: what runs the network when latency is measured.
        threads: CPU threads when latency is measured; by default as many as PyTorch uses.
    """
    return Meter(network, device, batch, engine=engine, threads=threads).savings(cost)
