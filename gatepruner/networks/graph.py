"""A traced network and its residual additions.

A network is traced with `torch.fx`. A residual block is an addition of two values that have a
common ancestor, `add(f(x), s(x))`. The operand with more parameters between the common ancestors
and the addition is the branch f, the other one the shortcut s.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.errors import ArchitectureError, listed

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
STOCHASTIC = {"StochasticDepth", "DropPath", "DropBlock2d"}  # read `training` when they run
IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
OWNS_TENSORS = ("call_module", "get_attr")


class Mode(nn.Module):
    """A constant of the graph with one value in training and another in evaluation."""

    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        self.values = (evaluation, training)

    def forward(self) -> Any:
        return self.values[self.training]


@dataclass(frozen=True)
class Addition:
    """A residual addition of the traced base.

    Attributes:
        name: of its block.
        path: of the module that contains it.
        gate: target of its gate, and prefix of the targets of its factors.
        node: name of its node.
        branch: which operand is the branch, 0 or 1.
        identity: whether the shortcut is the identity.
        layers: class names of the modules in the branch.
    """

    name: str
    path: str
    gate: str
    node: str
    branch: int
    identity: bool
    layers: tuple[str, ...]


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
    additions = _find_additions(module)
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


def _find_additions(module: fx.GraphModule) -> list[Addition]:
    """The residual additions in the order of depth."""
    ancestors: dict[fx.Node, int] = {}  # a set of nodes as the bits of one integer
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    additions = []
    for node, index in order.items():
        above = 1 << index
        for operand in node.all_input_nodes if not _reads_shape(node) else ():
            above |= ancestors[operand]
        ancestors[node] = above
        operands = [value for value in node.args[:2] if isinstance(value, fx.Node)]
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        if not ancestors[operands[0]] & ancestors[operands[1]]:
            continue
        own = [
            _between(ancestors, order, *operands),
            _between(ancestors, order, *reversed(operands)),
        ]
        additions.append(_addition(module, node, own))
    return _named(additions, {key for key, _ in module.named_modules()})


def _addition(module: fx.GraphModule, node: fx.Node, own: list[list[fx.Node]]) -> Addition:
    """The addition at a node, still without name and gate; `own` are its operands' own nodes."""
    branch = int(_weight(module, own[1]) > _weight(module, own[0]))
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    layers = tuple(
        type(module.get_submodule(str(inner.target))).__name__
        for inner in own[branch]
        if inner.op == "call_module"
    )
    return Addition("", path, "", node.name, branch, not own[1 - branch], layers)


def _named(additions: list[Addition], taken: Set[str]) -> list[Addition]:
    """The additions with names and gates; numbered if their module contains several."""
    totals, seen = Counter(addition.path for addition in additions), Counter[str]()
    named = []
    for addition in additions:
        path = addition.path
        seen[path] += 1
        number = str(seen[path]) if totals[path] > 1 else ""
        gate = f"{path}.gate{number}".lstrip(".")
        while gate in taken:
            gate += "_"
        name = f"{path or 'root'}:{number}" if number else path or "root"
        named.append(replace(addition, name=name, gate=gate))
    return named


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node reads only the shape of its input, which makes it no residual operand."""
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim")
    )


def _between(
    ancestors: Mapping[fx.Node, int],
    order: Mapping[fx.Node, int],
    operand: fx.Node,
    other: fx.Node,
) -> list[fx.Node]:
    """The nodes that lead to `operand` but not to `other`, in the order of the graph."""
    own, between, waiting = ancestors[operand] & ~ancestors[other], set(), [operand]
    while waiting:
        node = waiting.pop()
        if own >> order[node] & 1 and node not in between:
            between.add(node)
            waiting.extend(node.all_input_nodes)
    return sorted(between, key=order.__getitem__)


def _weight(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> tuple[int, int]:
    """The number of parameters of the nodes, and the number of nodes to break ties."""
    nodes = list(nodes)
    sizes = [
        tensor.numel()
        for node in nodes
        if node.op in OWNS_TENSORS
        for tensor in tensors_of(module, str(node.target)).values()
        if isinstance(tensor, nn.Parameter)
    ]
    return sum(sizes), len(nodes)


def tensors_of(module: nn.Module, target: str) -> dict[str, Tensor]:
    """The tensors at or below a target of the graph, by state-dict key."""
    owner = attribute(module, target)
    if isinstance(owner, Tensor):
        return {target: owner}
    return {f"{target}.{key}": value for key, value in owner.state_dict(keep_vars=True).items()}


def kind(module: nn.Module, node: fx.Node) -> Any:
    """The operation of a node: the class of its module, its function or its method's name."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target)))
    return node.target if node.op in ("call_function", "call_method") else None


def pads_with_zeros(node: fx.Node) -> bool:
    """Whether a padding node pads with zeros."""
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    return bool(given.get("mode", "constant") == "constant" and given.get("value") in (None, 0))


def attribute(module: nn.Module, target: str) -> Any:
    """The module or tensor at a target of the graph."""
    owner, _, last = target.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def forget_constants(module: nn.Module, keys: Set[str]) -> None:
    """Make all buffers non-persistent that are not among the keys of the base's state dict."""
    for key, buffer in list(module.named_buffers()):
        if key not in keys:  # fx registers every buffer as a persistent one
            owner, _, last = key.rpartition(".")
            delattr(module.get_submodule(owner), last)
            module.get_submodule(owner).register_buffer(last, buffer, persistent=False)
