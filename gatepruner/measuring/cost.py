"""What a network costs: parameters, multiply-accumulates, and time on a device."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from gatepruner.networks.base import Base, traced
from gatepruner.networks.network import Network


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
