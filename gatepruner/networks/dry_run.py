"""A dry run of a graph: what its nodes compute, on tensors that have shapes but no data."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from gatepruner.models import Shape
from gatepruner.networks.caches import caches_of, emptied
from gatepruner.networks.nodes import arguments_of, attribute, function_name

# Without data, PyTorch takes a hundred times as long for them as for a convolution.
KEEP_SHAPE = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


class NeedsDataError(Exception):
    """A node computes nothing from tensors without data.

    Args:
        node: in a graph.
    """

    def __init__(self, node: fx.Node) -> None:
        super().__init__(
            f"{function_name(node.target) or node.target} needs the values of a tensor"
        )
        self.node = node


class DryRun:
    """The values of a graph's nodes for one batch of images, on the meta device.

    Attributes:
        values: by node, of the nodes that have been run.
        overwritten: for each node that overwrites some of its inputs, these inputs.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        batch: int,
        shape: Shape,
        traced: nn.Module | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            root: the graph's modules, on the meta device; the run may change their attributes.
            graph: it may grow while it is run.
            batch: number of images.
            shape: `(C, H, W)` of one image.
            traced: the module that is being traced, if it is another one: it gets the tensors that
                its `forward` makes.
        """
        self.root = root
        self.traced = root if traced is None else traced
        self.graph = graph
        self.images = torch.empty(batch, *shape, device="meta")
        self.values: dict[fx.Node, Any] = {}
        self.overwritten: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self.tensors: dict[str, Any] = {}
        self.caches = caches_of(self.root)

    def value(self, node: fx.Node) -> Any:
        """What a node computes, once all nodes before it have been run."""
        for earlier in self.graph.nodes:
            if earlier not in self.values:
                self._run(earlier)
            if earlier is node:
                break
        return self.values[node]

    def _run(self, node: fx.Node) -> None:
        inputs = {value: self.values[value] for value in node.all_input_nodes}
        versions = {value: _versions(inputs[value]) for value in inputs}
        args, kwargs = arguments_of(node, inputs.__getitem__)
        try:
            with torch.no_grad(), torch.device("meta"), emptied(self.caches):
                result = self._result(node, args, kwargs)
        except Exception as error:  # functions of others may raise anything on what has no data
            if node.op == "call_module" and self._refuses(node, args, kwargs):
                raise
            raise NeedsDataError(node) from error
        self.values[node] = tree_map(_without_data, result, is_leaf=_is_size)
        changed = [value for value in inputs if _versions(inputs[value]) != versions[value]]
        if changed:
            self.overwritten[node] = tuple(changed)

    def _result(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return self.images
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if type(module) in KEEP_SHAPE:
                return torch.empty_like(*args, **kwargs)
            try:
                return module(*args, **kwargs)
            except (RuntimeError, NotImplementedError):  # it may ask for values
                return _with_data(module, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs) if callable(node.target) else args[0]

    def _refuses(self, node: fx.Node, args: Any, kwargs: Any) -> bool:
        """Whether a module refuses tensors with data, too."""
        try:
            _with_data(self.root.get_submodule(str(node.target)), args, kwargs)
        except Exception:  # of the module's own code
            return True
        return False

    def _tensor(self, target: str) -> Any:
        """The tensor at a target: the same one each time, since it may be overwritten."""
        if target not in self.tensors:
            try:
                tensor = attribute(self.root, target)
            except AttributeError:
                tensor = attribute(self.traced, target)
            self.tensors[target] = _without_data(tensor)
        return self.tensors[target]


def _is_size(value: Any) -> bool:
    """Whether a value is a size, which is no mere tuple: `x.new(size)` tells the difference."""
    return isinstance(value, torch.Size)


def _without_data(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _with_data(module: nn.Module, *inputs: Any) -> Any:
    """What a module returns for tensors of ones, with weights of zeros, on the CPU."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = copy.deepcopy(module).to_empty(device="cpu")
        for tensor in module.state_dict().values():
            tensor.zero_()
        args, kwargs = tree_map(_ones, inputs)
        return module(*args, **kwargs)


def _ones(value: Any) -> Any:
    return torch.ones_like(value, device="cpu") if isinstance(value, Tensor) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value of tuples, lists and dicts."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in tensors_in(value)]


def storages(value: Any) -> set[Hashable]:
    """What identifies the memory of the tensors in a value; views share that of their base."""
    return {tensor.untyped_storage()._cdata for tensor in tensors_in(value)}
