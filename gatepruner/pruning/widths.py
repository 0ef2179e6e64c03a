"""Inner widths: the channels of a branch that can go without touching anything outside of it.

A width is a dependency group (Fang, Ma, Song, Mi, Wang, 2023, https://arxiv.org/abs/2301.12900)
that lies wholly inside one branch: the layers that make its channels, those that pass them on one
by one, such as batch norm and depthwise convolutions, and those that read them. The gate of a
channel stands in front of the layers that read it, after bias, batch norm and activation: a closed
channel is read as 0, also beside the border of an image. So cutting it out is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from gatepruner.errors import PlanError, listed
from gatepruner.networks.base import Base
from gatepruner.networks.deferred import changed
from gatepruner.networks.narrowing import Sizes, is_used
from gatepruner.networks.network import Network

MULTIPLE = 8  # channels of a slice, since hardware likes multiples of 8
Gone = Mapping[str, Collection[int]]  # channels by the name of their width


@dataclass(frozen=True)
class Cut:
    """Where a layer has the channels of a width.

    Attributes:
        layer: its path.
        axis: of its weight: 0 for channels that it makes or passes on, 1 for those that it reads.
        places: for each channel of the width, its indices along that axis.
    """

    layer: str
    axis: int
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Width:
    """An inner width.

    Attributes:
        name: path of the layer that makes its channels.
        home: the block whose branch it is in; or a module that is in no branch, as the blocks
            without a shortcut are that networks of inverted residuals have.
        cuts: the layers that have its channels.
        kind: `"channels"`; `"heads"` of an attention or `"groups"` of a convolution, which stay
            whole and count as one channel each.
        channels: of its first layer, for each channel of the width.
        attention: path of the module whose code counts the heads, if it has to be told.
    """

    name: str
    home: str
    cuts: tuple[Cut, ...]
    kind: str = "channels"
    channels: int = 1
    attention: str = ""

    @property
    def size(self) -> int:
        """The number of its channels, heads or groups."""
        return len(self.cuts[0].places)

    @property
    def readers(self) -> tuple[Cut, ...]:
        """The layers that read its channels; a gate stands in front of each."""
        return tuple(cut for cut in self.cuts if cut.axis == 1)

    def step(self, multiple: int) -> int:
        """How many channels, heads or groups make a slice of at least `multiple` channels."""
        return max(1, -(-multiple // self.channels))


@dataclass(frozen=True)
class Widths:
    """The inner widths of a network.

    Attributes:
        found: by name, in the order of depth.
        others: why the channels that another layer makes cannot go, by its path.
        totals: how many channels each convolution and linear layer makes, by its path.
    """

    found: Mapping[str, Width]
    others: Mapping[str, str]
    totals: Mapping[str, int]

    @property
    def inner(self) -> int:
        """The number of channels of the inner widths."""
        return sum(width.size * width.channels for width in self.found.values())


def closed(
    weights: Mapping[str, Tensor], widths: Mapping[str, Width], gone: Gone
) -> dict[str, Tensor]:
    """The weights of a network in which the gates of some channels are 0.

    Args:
        weights: by state-dict key.
        widths: of the network, by name.
        gone: the channels whose gates are 0.
    """
    state = dict(weights)
    for name, channels in gone.items():
        for cut in widths[name].readers:
            places = sorted(place for channel in channels for place in cut.places[channel])
            key = f"{cut.layer}.weight"
            state[key] = state[key].index_fill(1, torch.tensor(places), 0.0)
    return state


def cut_out(
    weights: Mapping[str, Tensor], widths: Mapping[str, Width], gone: Gone
) -> dict[str, Tensor]:
    """The weights of a network without some channels.

    Args:
        weights: by state-dict key.
        widths: of the network, by name.
        gone: the channels to cut out; some of each width stay.
    """
    state = dict(weights)
    for (layer, axis), places in _places(widths, gone).items():
        for key in (key for key in weights if key.rpartition(".")[0] == layer):
            if state[key].ndim > axis:
                left = sorted({*range(state[key].shape[axis])} - places)
                state[key] = _selected(state[key], axis, torch.tensor(left))
    return state


def _places(widths: Mapping[str, Width], gone: Gone) -> dict[tuple[str, int], set[int]]:
    """The indices of some channels, by layer and axis; a layer may read several widths."""
    places: dict[tuple[str, int], set[int]] = {}
    for name, channels in gone.items():
        for cut in widths[name].cuts:
            mine = places.setdefault((cut.layer, cut.axis), set())
            mine.update(place for channel in channels for place in cut.places[channel])
    return places


def _selected(tensor: Tensor, axis: int, places: Tensor) -> Tensor:
    shape = [*tensor.shape[:axis], len(places), *tensor.shape[axis + 1 :]]
    return changed(tensor, lambda values: values.index_select(axis, places), shape)


def sizes_left(network: Network, widths: Mapping[str, Width], gone: Gone) -> dict[str, Sizes]:
    """The sizes of the layers of a network without some channels.

    Args:
        network: which has these widths.
        widths: by name.
        gone: the channels to cut out.
    """
    state, sizes = network.state(), dict[str, list[int]]()
    for (layer, axis), places in _places(widths, gone).items():
        sizes.setdefault(layer, list(sizes_now(state, layer)))[axis] -= len(places)
    for name, channels in gone.items():
        width = widths[name]
        if width.attention:
            sizes[width.attention] = [width.size - len({*channels}), width.channels]
    return {layer: tuple(each) for layer, each in sizes.items()}


def sizes_now(state: Mapping[str, Tensor], layer: str) -> Sizes:
    """The sizes of a layer whose tensors are in a state dict."""
    weight = state.get(f"{layer}.weight")  # a batch norm may have none
    return tuple((state[f"{layer}.running_mean"] if weight is None else weight).shape)


def check_slices(network: Network, widths: Widths, gone: Gone) -> None:
    """Refuse channels that cannot go.

    Raises:
        PlanError: there is no such width or channel, or nothing would be left; all are named.
    """
    unknown = [
        f"{name} ({widths.others.get(name, 'there is no such layer')})"
        for name in gone
        if name not in widths.found
    ]
    if unknown:
        names = list(widths.found)
        raise PlanError(
            f"cannot narrow {listed(unknown, 3)}: {network} has {len(names)} inner widths "
            f"({listed(names, 3)}); `inspect --units` lists them"
        )
    sizes = {name: widths.found[name].size for name in gone}
    beyond = [
        f"{name} has {sizes[name]} {widths.found[name].kind}"
        for name in gone
        if max(gone[name]) >= sizes[name]
    ]
    if beyond:
        raise PlanError(f"cannot cut out what does not exist: {listed(beyond)}, counted from 0")
    if empty := [name for name in gone if len({*gone[name]}) >= sizes[name]]:
        raise PlanError(
            f"cannot cut all channels of {listed(empty)} out: leave some, or remove the block"
        )


def left_of_widths(network: Network) -> dict[str, dict[str, tuple[int, int]]]:
    """How many channels the narrowed layers make, and how many the base's did.

    Args:
        network: it may be narrowed.

    Returns:
        By block and by the path of the layer; layers apart from blocks are listed under "".
    """
    whole = Network(network.base).state()
    made = {
        layer: (sizes[0], len(whole[key]))
        for layer, sizes in network.edits.narrowed
        if (key := f"{layer}.weight") in whole and whole[key].ndim > 1
    }
    made = {layer: pair for layer, pair in made.items() if pair[0] < pair[1]}
    homes: dict[str, dict[str, tuple[int, int]]] = {}
    for layer, pair in made.items():
        homes.setdefault(_home(network.base, layer), {})[layer] = pair
    return homes


@functools.lru_cache(maxsize=4096)
def _home(base: Base, layer: str) -> str:
    """The first block of a base whose branch has a layer; empty if none has it."""
    graphs = _without_each(base)
    return next((name for name, graph in graphs.items() if not is_used(layer, graph)), "")


@functools.lru_cache(maxsize=4)
def _without_each(base: Base) -> Mapping[str, fx.Graph]:
    """The graph of a base without each of its removable blocks, by its name."""
    whole = Network(base)
    return {name: whole.without([name]).graph() for name in whole.removable}
