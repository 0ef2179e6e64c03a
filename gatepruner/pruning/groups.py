"""The search for inner widths: groups of channels that hang together, as Torch-Pruning finds them.

Whether narrowing such a width does what closing its channels does is then tried on numbers, so
that a group that was not understood is no width.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatepruner.errors import PlanError, first_line, listed
from gatepruner.networks.base import REFUSALS, traced
from gatepruner.networks.narrowing import (
    BATCH_NORM,
    CONVOLUTIONS,
    LAYERS,
    PASSING,
    heads_counted,
    is_reshape,
    is_used,
    owns_weight,
)
from gatepruner.networks.network import Network
from gatepruner.networks.nodes import OWNS_TENSORS, path_of
from gatepruner.networks.slices import Slice, sorted_out, united
from gatepruner.pruning.dependencies import dependency_graph, require_torch_pruning
from gatepruner.pruning.widths import (
    Cut,
    Gone,
    Width,
    Widths,
    check_slices,
    closed,
    cut_out,
    sizes_left,
)

TRIED = "cutting them out changes the logits: the code counts, mixes or permutes them"
MOST_APART = 1e-5  # of the greatest logit, since code of a network may compute in float32


@functools.lru_cache(maxsize=16)
def widths_of(network: Network) -> Widths:
    """The inner widths of a network.

    Args:
        network: it may be narrowed already; channels are then numbered anew.

    Raises:
        EngineError: Torch-Pruning is missing or too old.
        PlanError: it cannot follow an operation of the network.
    """
    require_torch_pruning()
    search = _Search(network)
    found = search.found()
    while wrong := _wrong(network, found):
        for name in wrong:
            del found[name]
            search.others[name] = TRIED
    made = {cut.layer for width in found.values() for cut in width.cuts if cut.axis == 0}
    others = {name: why for name, why in search.others.items() if name not in made}
    return Widths(found, others, search.totals)


def narrowed(network: Network, gone: Gone) -> Network:
    """A network without some channels.

    Args:
        network: which has those widths.
        gone: the channels to cut out, by the name of their width.

    Raises:
        EngineError: Torch-Pruning is missing or too old.
        PlanError: there is no such width or channel, or nothing would be left.
    """
    widths = widths_of(network)
    check_slices(network, widths, gone)
    return network.narrowed_to(sizes_left(network, widths.found, gone))


def reduced(network: Network, units: Iterable[str]) -> Network:
    """A network without some units.

    Args:
        network: the whole one.
        units: names of removable blocks and of slices.

    Raises:
        EngineError, PlanError: see `Network.without`, `slices_left` and `narrowed`.
    """
    blocks, slices = sorted_out(units)
    small = network.without(blocks)
    if left := united(slices_left(network, small, slices)):
        return narrowed(network, left).without(blocks)
    return small


def slices_left(network: Network, small: Network, slices: Sequence[Slice]) -> list[Slice]:
    """The slices of which a layer is still there without some blocks.

    That need not be the layer that they are named after: where a block within the branch has
    a shortcut that changes shape, both of its operands make the channels.

    Args:
        network: before any block is removed.
        small: without the blocks.
        slices: of the network.

    Raises:
        EngineError: Torch-Pruning is missing or too old.
        PlanError: the network does not have their layers; all are named.
    """
    whole, graph = network.graph(), small.graph()
    unknown = [str(one) for one in slices if not is_used(one.width, whole)]
    if unknown:
        raise PlanError(
            f"cannot narrow {listed(unknown, 3)}: {network} has no such layer; `inspect --units` "
            "lists those that can be narrowed"
        )
    gone = {one.width for one in slices if not is_used(one.width, graph)}
    widths = widths_of(network).found if gone else {}
    gone -= {
        name
        for name in gone & widths.keys()
        if any(is_used(cut.layer, graph) for cut in widths[name].cuts)
    }
    return [one for one in slices if one.width not in gone]


class _UnfitError(Exception):
    """Why the channels of a layer are no width."""


@dataclass(frozen=True)
class _Member:
    """A layer of a dependency group: for each channel of the root, its indices along an axis."""

    layer: str
    axis: int
    places: Mapping[int, tuple[int, ...]]


class _Search:
    """The search for the widths of one network.

    Attributes:
        others: why the channels of a layer are no width, by its path.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.module = network.build(network.initial_weights())
        self.names = {module: name for name, module in self.module.named_modules()}
        graph = network.graph()
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        whole = _targets(graph)
        inner = {
            block: whole - _targets(network.without([block]).graph()) for block in network.removable
        }
        self.inner = dict(sorted(inner.items(), key=lambda pair: len(pair[1])))
        self.layers = [
            (str(node.target), layer)
            for node in self.calls
            if isinstance(layer := self.module.get_submodule(str(node.target)), LAYERS)
            and not isinstance(layer, PASSING)
        ]
        self.totals = {name: _made(layer) for name, layer in self.layers}
        self.others: dict[str, str] = {}
        self.dependencies = dependency_graph(network, self.module)

    def found(self) -> dict[str, Width]:
        """The widths by name, in the order of the graph."""
        widths: dict[str, Width] = {}
        made: set[str] = set()
        for name, layer in self.layers:
            if name in made:
                continue
            try:
                width = self._width(name, layer)
            except _UnfitError as reason:
                self.others[name] = str(reason)
                continue
            widths[name] = width
            made |= {cut.layer for cut in width.cuts if cut.axis == 0}
        return widths

    def _width(self, name: str, layer: nn.Module) -> Width:
        """The width that a layer makes; raises `_UnfitError` if it is none."""
        if _is_grouped(layer):
            raise _UnfitError("its groups read channels from outside of the branch")
        members = self._members(name, layer)
        total, kind, attention = len(members[0].places), "channels", ""
        elements: Sequence[Sequence[int]] = [(index,) for index in range(total)]
        grouped = [one for one in members if one.axis == 1 and _is_grouped(self._layer(one.layer))]
        if grouped:
            elements, members = self._by_groups(grouped, members)
            kind = "groups"
        elif heads := self._heads(members):
            kind, (count, width, attention) = "heads", heads
            if count * width != total:
                raise _UnfitError("they do not make up whole heads")
            elements = [range(head * width, (head + 1) * width) for head in range(count)]
        if len(elements) == 1:
            raise _UnfitError("there is only one, and one has to stay")
        home = self._home({one.layer for one in members})
        cuts = tuple(
            Cut(
                one.layer,
                one.axis,
                tuple(tuple(sorted(sum((one.places[i] for i in each), ()))) for each in elements),
            )
            for one in members
        )
        return Width(name, home, cuts, kind, len(elements[0]), attention)

    def _layer(self, name: str) -> nn.Module:
        return self.module.get_submodule(name)

    def _members(self, name: str, layer: nn.Module) -> list[_Member]:
        """The layers of a layer's group; raises `_UnfitError` if there is anything else."""
        graph = self.dependencies
        if layer not in graph.module2node:
            raise _UnfitError("Torch-Pruning does not see it")
        group = self._group(layer, _made(layer))
        reads = [
            len(item.idxs)
            for item in group.items
            if item.dep.target.module in self.names
            and graph.is_in_channel_pruning_fn(item.dep.handler)
        ]
        if not reads:
            raise _UnfitError("no other layer reads them")
        if min(reads) < _made(layer):  # queries, keys and values of one layer go together
            group = self._group(layer, min(reads))
        members: dict[tuple[str, int], dict[int, tuple[int, ...]]] = {}
        for item in group.items:
            target = item.dep.target.module
            path = self._path(target)
            if not path:
                continue
            reads = graph.is_in_channel_pruning_fn(item.dep.handler)
            passes = isinstance(target, PASSING) or _is_depthwise(target)
            places = members.setdefault((path, int(reads and not passes)), {})
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                places[root] = (*places.get(root, ()), index)
        found = [_Member(path, axis, places) for (path, axis), places in members.items()]
        self._check(found)
        return found

    def _path(self, target: Any) -> str:
        """The path of a layer in a group; empty for an operation without channels of its own.

        Raises `_UnfitError` if it is something that cannot be narrowed.
        """
        if isinstance(target, nn.Parameter):
            raise _UnfitError(
                "they pass a parameter outside of convolutions, linear layers and batch norms"
            )
        if type(target).__module__.startswith("torch_pruning") or _is_elementwise(target):
            return ""
        path: str = self.names[target]
        if not isinstance(target, LAYERS):
            raise _UnfitError(f"they pass {path} ({type(target).__name__})")
        if not owns_weight(target):
            raise _UnfitError(f"{path} makes its weight from other tensors, as with a weight norm")
        whole: Any = traced(self.network.base).module.get_submodule(path)
        if isinstance(target, CONVOLUTIONS) and target.groups == 1 < whole.groups:
            raise _UnfitError(f"{path} has only one group left")
        return path

    def _group(self, layer: nn.Module, channels: int) -> Any:
        """Torch-Pruning's group of the first channels of a layer."""
        prune = self.dependencies.get_pruner_of_module(layer).prune_out_channels
        try:
            return self.dependencies.get_pruning_group(layer, prune, list(range(channels)))
        except Exception as error:  # see `dependency_graph`
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise _UnfitError(f"Torch-Pruning cannot find their group ({reason})") from error

    def _check(self, members: Sequence[_Member]) -> None:
        """Raise `_UnfitError` if a group is no whole, reaches outside of a branch, or is shared."""
        roots = members[0].places.keys()
        for one in members:
            places = [place for each in one.places.values() for place in each]
            if (
                one.places.keys() != roots
                or len({*places}) < len(places)
                or max(places) >= _size(self._layer(one.layer), one.axis)
            ):
                raise _UnfitError(f"{one.layer} does not have each of them exactly once")
        layers = {one.layer for one in members}
        self._home(layers)
        calls = [str(node.target) for node in self.calls]
        if several := [layer for layer in layers if calls.count(layer) != 1]:
            raise _UnfitError(
                f"they pass a layer that is called several times: {listed(sorted(several))}"
            )

    def _home(self, layers: set[str]) -> str:
        """The innermost block whose branch has all these layers, or a module apart from blocks."""
        for block, targets in self.inner.items():
            if layers <= targets:
                return block
        apart, path = not any(layers & own for own in self.inner.values()), _common_path(layers)
        if apart and path and not any(block.startswith(f"{path}.") for block in self.inner):
            return path
        raise _UnfitError(
            f"they are shared by layers outside of one branch: {listed(sorted(layers), 3)}"
        )

    def _by_groups(
        self, grouped: Sequence[_Member], members: list[_Member]
    ) -> tuple[list[Sequence[int]], list[_Member]]:
        """The groups of a convolution, and the layers on both of its sides."""
        (middle, *more) = grouped
        layer: Any = self._layer(middle.layer)
        behind = self._members(middle.layer, layer)
        if more or any(one.axis == 1 and _is_grouped(self._layer(one.layer)) for one in behind):
            raise _UnfitError("several grouped convolutions follow each other")
        if len(behind[0].places) < layer.out_channels:
            raise _UnfitError(f"the channels of {middle.layer} are split behind it")
        reads, makes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        of_group: list[list[int]] = [[] for _ in range(layer.groups)]
        for root, (place,) in middle.places.items():
            of_group[place // reads].append(root)
        joined = [one for one in members if one is not middle]
        for one in behind:
            places = {
                root: tuple(
                    place
                    for index in range(group * makes, (group + 1) * makes)
                    for place in one.places[index]
                )
                for group, (root, *_) in enumerate(of_group)
            }
            rest = {root: () for roots in of_group for root in roots[1:]}
            joined.append(_Member(one.layer, one.axis, {**rest, **places}))
        return list(of_group), joined

    def _heads(self, members: Sequence[_Member]) -> tuple[int, int, str] | None:
        """The number of heads that a group is split into, their width, and whose code counts them.

        `None` if it is not split; the code may also leave their number to PyTorch.
        """
        makers = {one.layer for one in members if one.axis == 0}
        for node in traced(self.network.base).module.graph.nodes:
            if not is_reshape(node) or str(node.args[0].target) not in makers:
                continue
            before, after = (each.meta.get("shape") for each in (node.args[0], node))
            if before and after and after[-1] != before[-1]:
                width, path = int(after[-1]), path_of(node)
                counted = heads_counted(node, width) is not None
                return len(members[0].places) // width, width, path if counted else ""
        return None


def _wrong(network: Network, widths: Mapping[str, Width]) -> list[str]:
    """The widths of which cutting out some channels is not what closing them is."""
    sizes = {name: width.size for name, width in widths.items()}
    trials = [{name: _most(size) for name, size in sizes.items()}]
    trials.append({name: _some(size, at) for at, (name, size) in enumerate(sizes.items())})
    weights = _drawn(network)
    images = torch.randn(2, *network.base.input_shape, generator=torch.Generator().manual_seed(0))
    images[1] *= 100  # a normalisation by the squares of neighbours hardly shows in small values

    def differ(gone: Gone) -> bool:
        masked = network.build(closed(weights, widths, gone))
        try:
            small = network.narrowed_to(sizes_left(network, widths, gone))
            module = small.build(cut_out(weights, widths, gone))
            # What does not fit is reported there by torch.fx, and is no error here.
            with contextlib.redirect_stderr(io.StringIO()):
                expected, logits = (_computed(each, images) for each in (masked, module))
        except REFUSALS:
            return True
        return not all(map(_is_close, logits, expected))

    def wrong(names: Iterable[str]) -> bool:
        return any(differ({name: trial[name] for name in names}) for trial in trials)

    if not widths or not wrong(widths):
        return []
    return [name for name in widths if wrong([name])] or list(widths)


def _is_close(logits: Tensor, expected: Tensor) -> bool:
    """Whether the logits of an image are those expected, where these are infinite, too."""
    apart = MOST_APART * float(expected.abs().max())
    return torch.allclose(logits, expected, rtol=0.0, atol=apart, equal_nan=True)


def _some(size: int, at: int) -> tuple[int, ...]:
    """A third of so many channels: the first, never the last, and others at random.

    Neither in another order nor in the reverse one are they the same. Widths that follow each other
    lose different numbers, so that code shows which needs as many channels of both.

    Args:
        size: of a width.
        at: its place among all widths.
    """
    count = min(max(size // 3, 1) + at % 3, size - 1)
    return (0, *_shuffled(size)[: count - 1])


def _most(size: int) -> tuple[int, ...]:
    """All of so many channels but one: what is least or counted among several then shows."""
    (*_, kept) = (0, *_shuffled(size))
    return tuple(index for index in range(size) if index != kept)


def _shuffled(size: int) -> list[int]:
    """The channels between the first and the last one, in an order at random."""
    order: list[int] = torch.randperm(
        size - 2, generator=torch.Generator().manual_seed(size)
    ).tolist()
    return [1 + index for index in order]


@torch.no_grad()
def _computed(module: nn.Module, images: Tensor) -> Tensor:
    """The logits in double precision, so that a small difference is none of rounding."""
    logits: Tensor = module.double()(images.double())
    return logits


def _drawn(network: Network) -> dict[str, Tensor]:
    """Weights in which nothing is 0 or 1 as it is made: no shift, scale of a branch, or head."""
    draw = torch.Generator().manual_seed(0)
    return {
        key: tensor + 0.1 * torch.rand(tensor.shape, generator=draw)
        if tensor.is_floating_point() and (tensor.ndim == 1 or _is_constant(tensor))
        else tensor
        for key, tensor in network.initial_weights().items()
    }


def _is_constant(tensor: Tensor) -> bool:
    return bool(tensor.numel()) and bool((tensor == tensor.flatten()[0]).all())


def _common_path(layers: Iterable[str]) -> str:
    """The path of the innermost module that has all these layers; empty for the root."""
    parts = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    return ".".join(each[0] for each in itertools.takewhile(lambda each: len({*each}) == 1, parts))


def _targets(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op in OWNS_TENSORS}


def _made(layer: Any) -> int:
    """The number of channels that a layer makes."""
    return int(layer.weight.shape[0])


def _size(layer: Any, axis: int) -> int:
    """How many channels a layer makes or passes on, or along axis 1 reads."""
    if isinstance(layer, BATCH_NORM):  # it may have no weight
        return int(layer.num_features)
    return int(layer.weight.shape[axis]) * (layer.groups if axis and _is_grouped(layer) else 1)


def _is_elementwise(layer: Any) -> bool:
    """Whether a layer is the same for all channels: a PReLU with one slope."""
    return isinstance(layer, nn.PReLU) and layer.num_parameters == 1


def _is_depthwise(layer: Any) -> bool:
    """Whether a convolution makes one channel from each."""
    one_each = isinstance(layer, CONVOLUTIONS) and layer.in_channels == layer.out_channels
    return one_each and layer.groups == layer.in_channels > 1


def _is_grouped(layer: Any) -> bool:
    """Whether a convolution has groups that read or make several channels."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups > 1 and not _is_depthwise(layer)
