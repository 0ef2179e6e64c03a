"""The cost of a network: parameters and multiply-accumulates (MACs)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from gatepruner.networks.base import traced
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.narrowing import narrowed_tensor
from gatepruner.networks.network import Network
from gatepruner.networks.nodes import OWNS_TENSORS, kind, tensors_of


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        params: number of parameters, including gates.
        macs: multiply-accumulates of convolutions, matrix products and attention for one image;
            half of what `torch.utils.flop_counter` counts.
    """

    params: int
    macs: int


def count(subject: Network | Checkpoint) -> Cost:
    """Count the parameters and MACs of a network from its graph alone.

    No edit but narrowing changes a shape: each node of the base is counted once, and the MACs of a
    pruned network are the sum over its remaining nodes. A narrowed network is counted anew.

    Args:
        subject: a network, or a checkpoint, whose network is counted.
    """
    network = subject.network if isinstance(subject, Checkpoint) else subject
    macs = macs_of_nodes(network)
    nodes = (node.meta.get("base") for node in network.graph().nodes)
    distinct = {id(tensor): tensor for tensor in network.state().values()}.values()
    params = sum(tensor.numel() for tensor in distinct if isinstance(tensor, nn.Parameter))
    return Cost(params, sum(macs.get(node, 0) for node in nodes))


def alike(network: Network) -> tuple[tuple[str, ...], ...]:
    """The removable blocks in groups: those of a group do the same operations on as many numbers.

    So each of a group takes as long as any other.
    """
    module, narrowed = traced(network.base).module, network.edits.narrowed
    macs, sizes = macs_of_nodes(network), dict(narrowed)

    def work_of(node: fx.Node) -> tuple[Any, int, int]:
        whole = tensors_of(module, str(node.target)) if node.op in OWNS_TENSORS else {}
        owned = {key: narrowed_tensor(key, tensor, sizes) for key, tensor in whole.items()}
        params = sum(tensor.numel() for tensor in owned.values())
        return kind(module, node), params, macs.get(node.meta["base"], 0)

    nodes = [node for node in network.graph().nodes if "base" in node.meta]
    groups: dict[Any, list[str]] = {}
    for name in network.removable:
        left = {node.meta.get("base") for node in network.without([name]).graph().nodes}
        work = tuple(work_of(node) for node in nodes if node.meta["base"] not in left)
        groups.setdefault(work, []).append(name)
    return tuple(map(tuple, groups.values()))


def macs_of_nodes(network: Network) -> Mapping[str, int]:
    """MACs for one image of each node of a network, without nodes that have none.

    Args:
        network: a narrowed one is counted without its removed blocks. The sizes of these are not
            known, and where a block lies within another one, both share a width.

    Returns:
        By the name of the base's node.
    """
    return _macs_of_nodes(network if network.edits.narrowed else Network(network.base))


@functools.lru_cache(maxsize=32)
def _macs_of_nodes(network: Network) -> Mapping[str, int]:
    base = network.base
    own = base.source == "gatepruner"
    bare = own and not network.edits.narrowed
    module = traced(base).module if bare else network.build_blank()
    counter = _LayerCounter(module) if own else _FlopCounter(module)
    with torch.inference_mode():
        counter.run(torch.zeros(1, *base.input_shape, device="cpu" if own else "meta"))
    return counter.macs


def _name_in_base(node: fx.Node) -> str:
    """The name of the base's node that a node was copied from, or is itself."""
    return str(node.meta.get("base", node.name))


class _FlopCounter(fx.Interpreter):
    """Counts every operation of a node, on the meta device."""

    def __init__(self, module: fx.GraphModule) -> None:
        # What computes weights from others takes parameters, whose gradients the counter watches.
        super().__init__(module.to("meta").requires_grad_(False))
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as flops:
            result = super().run_node(n)
        if flops.get_total_flops():
            self.macs[_name_in_base(n)] = flops.get_total_flops() // 2
        return result


class _LayerCounter(fx.Interpreter):
    """Counts convolutions and linear layers, the only ones in gatepruner's own networks.

    It saves a second, since `torch.utils.flop_counter` and the first operation on the meta device
    make torch import its compilers. No layer is run: its output is an expanded zero of the right
    shape.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module":
            return super().run_node(n)
        layer, x = self.fetch_attr(str(n.target)), self.env[n.all_input_nodes[0]]
        if isinstance(layer, nn.Conv2d):
            sides = [
                (x.shape[2 + axis] + 2 * int(layer.padding[axis]) - layer.kernel_size[axis])
                // layer.stride[axis]
                + 1
                for axis in (0, 1)
            ]
            shape = [x.shape[0], layer.out_channels, *sides]
        elif isinstance(layer, nn.Linear):
            shape = [*x.shape[:-1], layer.out_features]
        else:  # normalisation, activation and dropout keep the shape
            return x
        self.macs[_name_in_base(n)] = math.prod(shape) * layer.weight[0].numel()
        return torch.zeros(()).expand(shape)
