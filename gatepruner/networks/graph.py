"""Tracing a network with `torch.fx` into a graph of pure operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gatepruner.errors import ArchitectureError, listed
from gatepruner.networks.additions import Addition, find_additions
from gatepruner.networks.nodes import kind

STOCHASTIC = {"StochasticDepth", "DropPath", "DropBlock2d"}  # read `training` when they run
IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Mode(nn.Module):
    """A constant of the graph with one value in training and another in evaluation."""

    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        self.values = (evaluation, training)

    def forward(self) -> Any:
        return self.values[self.training]


@dataclass(frozen=True)
class Trace:
    """A traced base.

    Attributes:
        module: its graph and its modules, on the meta device.
        additions: its residual additions by block name, in the order of depth.
        keys: of its state dict, including unused weights.
    """

    module: fx.GraphModule
    additions: Mapping[str, Addition]
    keys: frozenset[str]


class _Tracer(fx.Tracer):
    """Keeps whole the modules that depend on `training`, and those that the caller declares."""

    proxy_buffer_attributes = True

    def __init__(self, leaf_modules: tuple[type, ...], functions: tuple[Callable[..., Any], ...]):
        super().__init__(autowrap_functions=functions)
        self.leaf_modules = leaf_modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        stochastic = type(m).__name__ in STOCHASTIC
        leaf = stochastic or isinstance(m, self.leaf_modules)
        return leaf or bool(super().is_leaf_module(m, module_qualified_name))


def trace(
    base: nn.Module,
    name: str,
    leaf_modules: Iterable[type] = (),
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Trace:
    """Trace a network and find its residual additions.

    Args:
        base: the network; it may be on the meta device, since only its structure matters.
        name: of the network, for error messages.
        leaf_modules: module classes to keep whole.
        leaf_functions: functions to keep whole.

    Raises:
        ArchitectureError: the network cannot be traced, its graph differs between training and
            evaluation, or it has no residual addition.
    """
    keys = frozenset(base.state_dict())
    graphs = []
    for training in (True, False):
        for constant in [key for key in vars(base) if key.startswith("_tensor_constant")]:
            delattr(base, constant)  # of the previous trace, so that both traces use equal names
        tracer = _Tracer(tuple(leaf_modules), tuple(leaf_functions))
        try:
            graphs.append(tracer.trace(base.train(training)))
        except Exception as error:  # the network's own code may raise anything on a proxy
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArchitectureError(
                f"{name} cannot be traced: {reason}; declare the class of the module that fails "
                "as a leaf, Checkpoint.of(..., leaves=(ThatModule,))"
            ) from error
    modes = _join_modes(*graphs, name=name)
    for target, mode in modes.items():
        base.add_module(target, mode)
    module = fx.GraphModule(base, graphs[1], class_name=identifier(name))
    for target in modes:
        delattr(base, target)
    _make_pure(module)
    forget_constants(module, keys)
    lost = [key for key, buffer in module.named_buffers() if buffer.is_meta and key not in keys]
    if lost:
        raise ArchitectureError(
            f"{name} cannot be traced: it computes {listed(lost)} from its weights; declare the "
            "class of the module that does so as a leaf, Checkpoint.of(..., leaves=(ThatModule,))"
        )
    _skip_identities(module)
    additions = find_additions(module)
    if not additions:
        raise ArchitectureError(f"{name} has no residual addition: there is no block to remove")
    return Trace(module, {addition.name: addition for addition in additions}, keys)


def identifier(name: str) -> str:
    """A name with underscores for all characters that a Python identifier cannot have."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _join_modes(training: fx.Graph, evaluation: fx.Graph, *, name: str) -> dict[str, Mode]:
    """In the second graph, make the constants that differ from the first depend on the mode."""
    modes: dict[str, Mode] = {}
    pairs = list(zip(training.nodes, evaluation.nodes, strict=False))
    same = len(training.nodes) == len(evaluation.nodes)
    if not same or any((a.op, a.target) != (b.op, b.target) for a, b in pairs):
        raise ArchitectureError(
            f"the graph of {name} differs between training and evaluation: declare the class of "
            "the module that reads `self.training` as a leaf, "
            "Checkpoint.of(..., leaves=(ThatModule,))"
        )

    def join(node: fx.Node, in_training: Any, in_evaluation: Any) -> Any:
        if repr(in_training) == repr(in_evaluation):  # nodes print as their names
            return in_evaluation
        target = f"mode_{len(modes)}"
        modes[target] = Mode(in_training, in_evaluation)
        with evaluation.inserting_before(node):
            return evaluation.call_module(target)

    for a, b in pairs:
        b.args = tuple(join(b, *both) for both in zip(a.args, b.args, strict=True))
        b.kwargs = {key: join(b, a.kwargs[key], value) for key, value in b.kwargs.items()}
    return modes


def _make_pure(module: fx.GraphModule) -> None:
    """Replace in-place operations by ones that return a new tensor, which later nodes use.

    Edits and merged networks require that no value is overwritten. Modules keep their `inplace`:
    `edits.settle_in_place` sets it in each network that is built.
    """
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    for node, index in order.items():
        node.type = None  # an annotation; PyTorch 2.6 cannot pickle one that is a string
        pure = _out_of_place(node)
        flagged = node.op == "call_module" and getattr(
            module.get_submodule(str(node.target)), "inplace", False
        )
        if pure is None and not flagged and not node.kwargs.get("inplace"):
            continue
        overwritten = node.all_input_nodes[0]
        for user in list(overwritten.users):
            if order[user] > index:
                user.replace_input_with(overwritten, node)
        node.target = node.target if pure is None else pure
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _out_of_place(node: fx.Node) -> Any:
    """The out-of-place version of an in-place function or method; `None` for any other node."""
    name = getattr(node.target, "__name__", str(node.target))
    if node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        return name[:-1]
    if node.op != "call_function":
        return None
    if node.target in IN_PLACE_OPERATORS:
        return IN_PLACE_OPERATORS[node.target]
    if name.endswith("_") and not name.endswith("__"):
        return getattr(torch, name[:-1], None) or getattr(F, name[:-1])
    return None


def _skip_identities(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if kind(module, node) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def forget_constants(module: nn.Module, keys: Set[str]) -> None:
    """Make all buffers non-persistent that are not among the keys of the base's state dict."""
    for key, buffer in list(module.named_buffers()):
        if key not in keys:  # fx registers every buffer as a persistent one
            owner, _, last = key.rpartition(".")
            delattr(module.get_submodule(owner), last)
            module.get_submodule(owner).register_buffer(last, buffer, persistent=False)
