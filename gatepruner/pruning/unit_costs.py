"""What removing a unit, a block or a slice of an inner width, saves now that others are gone.

MACs and parameters follow from the widths that are left. Latency is read from a table that is
measured once, see `latency_table`: between the widths that were measured, the time of a block is
linear in the MACs that are left of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx, nn

from gatepruner.measuring.cost import macs_of_nodes
from gatepruner.networks.base import traced
from gatepruner.networks.network import Network
from gatepruner.networks.nodes import OWNS_TENSORS, tensors_of
from gatepruner.pruning.widths import Width, sizes_now

Table = Mapping[str, Sequence[tuple[float, float]]]  # shares of MACs and seconds, of each home
NO_TIME = ((0.0, 0.0), (1.0, 0.0))


@dataclass
class UnitCosts:
    """The costs of the homes of widths, which are blocks and modules apart from blocks.

    Attributes:
        network: the whole network.
        widths: its inner widths, by name.
        kind: `"macs"`, `"params"` or `"latency"`.
        table: of latencies, see `latency_table`.
        left: how many channels are left of each width.
    """

    network: Network
    widths: Mapping[str, Width]
    kind: str
    table: Table = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        nodes = [node for node in self.network.graph().nodes if "base" in node.meta]
        self.nodes = {home: _nodes_of(self.network, home, nodes) for home in self.homes}
        macs = macs_of_nodes(self.network)
        self.macs = {node: macs.get(node.meta["base"], 0) for node in nodes}
        shapes = {
            key: tensor.shape
            for key, tensor in self.network.state().items()
            if isinstance(tensor, nn.Parameter)
        }
        module = traced(self.network.base).module
        self.shapes = {
            node: {
                key: shapes[key] for key in tensors_of(module, str(node.target)) if key in shapes
            }
            for node in nodes
            if node.op in OWNS_TENSORS
        }
        self.cuts = self._cuts()
        self.whole = {home: self._cost_of_home(home, "macs") for home in self.homes}

    @property
    def homes(self) -> list[str]:
        """The blocks, and the modules apart from blocks that have an inner width."""
        apart = (width.home for width in self.widths.values())
        return list(dict.fromkeys([*self.network.removable, *apart]))

    def total(self, gone: Iterable[str] = ()) -> float:
        """The cost of all homes now; homes within homes are not counted twice.

        Args:
            gone: the blocks that are gone.
        """
        every, without = (sum(map(self.cost, self._outer(homes))) for homes in (self.homes, gone))
        return every - without

    def _outer(self, homes: Iterable[str]) -> list[str]:
        """Those of some homes that lie within no other one."""
        nodes = {home: self.nodes[home] for home in homes}
        return [home for home in nodes if not any(nodes[home] < each for each in nodes.values())]

    def cost(self, home: str) -> float:
        """What a home costs now."""
        if self.kind != "latency":
            return self._cost_of_home(home, self.kind)
        share = self._cost_of_home(home, "macs") / max(self.whole[home], 1)
        shares, seconds = zip(*self.table.get(home, NO_TIME), strict=True)
        return float(np.interp(share, shares, seconds))

    def saving(self, name: str, channels: int) -> float:
        """What a slice of so many channels of a width saves now."""
        home, left = self.widths[name].home, self.left.get(name, self.widths[name].size)
        before = self.cost(home)
        self.left[name] = left - channels
        after = self.cost(home)
        self.left[name] = left
        return before - after

    def _cost_of_home(self, home: str, kind: str) -> float:
        return sum(self._cost_of_node(node, kind) for node in self.nodes[home])

    def _cost_of_node(self, node: fx.Node, kind: str) -> float:
        if kind == "macs":
            if not self.macs[node]:
                return 0.0
            return self.macs[node] * self._share(str(node.target), (0, 1), node)
        return sum(
            math.prod(shape)
            * self._share(key.rpartition(".")[0], (0, 1) if len(shape) > 1 else (0,))
            for key, shape in self.shapes.get(node, {}).items()
        )

    def _share(self, layer: str, axes: Iterable[int], node: fx.Node | None = None) -> float:
        """Which share is left of a layer's channels, along these axes of its weight."""
        if node is None or node.op in OWNS_TENSORS:
            shares = [self.cuts.get((layer, axis), {}) for axis in axes]
        else:  # the products of an attention
            homes = [home for home, nodes in self.nodes.items() if node in nodes]
            shares = [
                {name: 1.0}
                for name, width in self.widths.items()
                if width.kind == "heads" and width.home in homes
            ]
        return math.prod(
            1 - sum(share * self._gone(name) for name, share in each.items()) for each in shares
        )

    def _gone(self, name: str) -> float:
        """Which share of a width is gone."""
        size = self.widths[name].size
        return 1 - self.left.get(name, size) / size

    def _cuts(self) -> dict[tuple[str, int], dict[str, float]]:
        """The widths that a layer has along an axis, and how much of the axis each of them is."""
        state, cuts = self.network.state(), dict[tuple[str, int], dict[str, float]]()
        for width in self.widths.values():
            for cut in width.cuts:
                share = sum(map(len, cut.places)) / sizes_now(state, cut.layer)[cut.axis]
                cuts.setdefault((cut.layer, cut.axis), {})[width.name] = share
        return cuts


def _nodes_of(network: Network, home: str, nodes: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The nodes of a block's branch, or of a module."""
    if home in network.removable:
        kept = {node.meta.get("base") for node in network.without([home]).graph().nodes}
        return frozenset(node for node in nodes if node.meta["base"] not in kept)
    return frozenset(node for node in nodes if str(node.target).startswith(f"{home}."))
