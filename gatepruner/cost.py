"""What a network costs: parameters, multiply-accumulates, and time on a device."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from gatepruner.base import Base, traced
from gatepruner.models import Shape
from gatepruner.network import Network


@dataclass(frozen=True)
class Cost:
    """Size and work of a network.

    Attributes:
        params: learned numbers, gates included.
        macs: multiply-accumulates of convolutions, matrix products and attention for one
            image: half of what `torch.utils.flop_counter` counts.
    """

    params: int
    macs: int


def count(network: Network) -> Cost:
    """Parameters and MACs of a network, from its graph alone.

    An edit leaves every shape as it is, so each node of the base is counted once and a pruned
    network is the sum of the nodes that it still has.
    """
    macs = _macs_of_nodes(network.base)
    nodes = (node.meta.get("base") for node in network.graph().nodes)
    learned = {id(it): it for it in network.state().values() if isinstance(it, nn.Parameter)}
    params = sum(tensor.numel() for tensor in learned.values())
    return Cost(params, sum(macs.get(node, 0) for node in nodes))


@functools.lru_cache(maxsize=32)
def _macs_of_nodes(base: Base) -> Mapping[str, int]:
    """MACs of each node of the base's graph for one image, those with none left out."""
    own = base.source == "gatepruner"
    counter = _OfLayers(traced(base).module) if own else _OfOperations(Network(base).build_blank())
    with torch.inference_mode():
        counter.run(torch.zeros(1, *base.input_shape, device="cpu" if own else "meta"))
    return counter.macs


class _OfOperations(fx.Interpreter):
    """Counts every operation that a node runs, on the meta device."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module.to("meta"))
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as flops:
            result = super().run_node(n)
        if flops.get_total_flops():
            self.macs[n.name] = flops.get_total_flops() // 2
        return result


class _OfLayers(fx.Interpreter):
    """Counts convolutions and linear layers, which is all that our own networks multiply in.

    The same numbers a second sooner: `torch.utils.flop_counter` and the first operation on the
    meta device make torch import its compilers. No layer is run: its output has the right shape
    and one number in it.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module":
            return super().run_node(n)
        layer, taken = self.fetch_attr(str(n.target)), self.env[n.all_input_nodes[0]]
        if isinstance(layer, nn.Conv2d):
            sides = [
                (taken.shape[2 + axis] + 2 * int(layer.padding[axis]) - layer.kernel_size[axis])
                // layer.stride[axis]
                + 1
                for axis in (0, 1)
            ]
            shape = [taken.shape[0], layer.out_channels, *sides]
        elif isinstance(layer, nn.Linear):
            shape = [*taken.shape[:-1], layer.out_features]
        else:  # normalisation, activation and dropout keep the shape
            return taken
        self.macs[n.name] = math.prod(shape) * layer.weight[0].numel()
        return torch.zeros(()).expand(shape)


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, in seconds.

    Attributes:
        median: of all runs.
        low: first quartile.
        high: third quartile.
        runs: how many there were.
        batch: images in one pass.
        device: where.
    """

    median: float
    low: float
    high: float
    runs: int
    batch: int
    device: str


def latency(
    modules: Mapping[str, nn.Module],
    input_shape: Shape,
    *,
    batch: int = 1,
    device: str | torch.device = "cpu",
    runs: int = 30,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Latency]:
    """Measure modules against each other, in turns, so that all meet the same conditions.

    Args:
        modules: what to measure, by name; all of them are moved to the device.
        input_shape: `(C, H, W)` of one image.
        batch: images in one pass.
        device: where to measure.
        runs: rounds, after three that are not counted.
        track: wraps the rounds, to show progress.

    Returns:
        The latency of each module, by name.
    """
    device = torch.device(device)
    images = torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    modes = {name: module.training for name, module in modules.items()}
    ready = {name: module.to(device).eval() for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        for turn in track(range(runs + 3)):
            for name, module in ready.items():
                start = time.perf_counter()
                module(images)
                _wait_for(device)
                if turn >= 3:
                    times[name].append(time.perf_counter() - start)
    for name, training in modes.items():
        ready[name].train(training)
    return {name: _summary(found, batch, device) for name, found in times.items()}


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
    names = [block.name for block in network.blocks if block.removable]
    without = {name: network.without([name]) for name in names}
    if cost != "latency":
        whole = getattr(count(network), cost)
        return {name: whole - getattr(count(small), cost) for name, small in without.items()}
    weights = network.initial_weights()
    modules = {
        name: small.build({key: weights[key] for key in small.state()})
        for name, small in {"": network, **without}.items()
    }
    found = latency(modules, network.base.input_shape, batch=batch, device=device)
    return {name: found[""].median - found[name].median for name in names}


def _summary(times: list[float], batch: int, device: torch.device) -> Latency:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Latency(median, low, high, len(times), batch, str(device))


def _wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
