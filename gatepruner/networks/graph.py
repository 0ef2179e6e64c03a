"""A traced network and its residual additions.

A network is traced with `torch.fx`; a residual block is an addition of two values that have
an ancestor in common, `add(f(x), s(x))`. The operand with more parameters between the fork and
the addition is the branch f, the other one the shortcut s.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.errors import ArchitectureError, listed

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
STOCHASTIC = {"StochasticDepth", "DropPath", "DropBlock2d"}  # must see `training` as they run
IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
OWNS_TENSORS = ("call_module", "get_attr")


class Mode(nn.Module):
    """A constant of the graph that is one thing in training and another in evaluation."""

    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        self.values = (evaluation, training)

    def forward(self) -> Any:
        return self.values[self.training]


@dataclass(frozen=True)
class Addition:
    """A residual addition of the traced base: where it stands and which operand is which."""

    name: str
    path: str
    gate: str  # state-dict prefix of its gate, and stem of its scales
    node: str
    branch: int
    identity: bool
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """A base as a graph: its modules (on the meta device), its nodes and its additions."""

    module: fx.GraphModule
    additions: Mapping[str, Addition]
    keys: frozenset[str]  # of the base's state dict, the weights that no node uses included


class _Tracer(fx.Tracer):
    """Leaves whole what depends on `training`, and what the caller declares."""

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
        base: the network; only its structure matters, so it may be on the meta device.
        name: what messages call it.
        leaf_modules: module classes to keep whole.
        leaf_functions: functions to keep whole.

    Raises:
        ArchitectureError: it cannot be traced, is another graph in training than in
            evaluation, or has no residual addition.
    """
    keys = frozenset(base.state_dict())
    graphs = []
    for training in (True, False):
        for constant in [key for key in vars(base) if key.startswith("_tensor_constant")]:
            delattr(base, constant)  # of the trace before: the names have to be the same again
        tracer = _Tracer(tuple(leaf_modules), tuple(leaf_functions))
        try:
            graphs.append(tracer.trace(base.train(training)))
        except Exception as error:  # whatever the network's own code raises on a proxy
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArchitectureError(
                f"{name} cannot be traced: {reason}; name the class of the module that does this "
                "among the leaves, Checkpoint.of(..., leaves=(ThatModule,))"
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
        raise ArchitectureError(f"{name} computes {listed(lost)} from its weights as it is traced")
    _skip_identities(module)
    additions = _find_additions(module)
    if not additions:
        raise ArchitectureError(f"{name} has no residual addition, so no block to remove")
    return Trace(module, {addition.name: addition for addition in additions}, keys)


def identifier(name: str) -> str:
    """A name as Python would take it for a class."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _join_modes(training: fx.Graph, evaluation: fx.Graph, *, name: str) -> dict[str, Mode]:
    """Make the constants in which the graphs differ depend on the mode, in the second graph."""
    modes: dict[str, Mode] = {}
    pairs = list(zip(training.nodes, evaluation.nodes, strict=False))
    same = len(training.nodes) == len(evaluation.nodes)
    if not same or any((a.op, a.target) != (b.op, b.target) for a, b in pairs):
        raise ArchitectureError(
            f"{name} is another graph in training than in evaluation: name the class of the "
            "module that asks for `self.training` among the leaves"
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
    """Give every in-place operation a result of its own, which is what comes after it uses.

    Edits and shared evaluation rely on values that nothing overwrites. Modules keep their
    `inplace`: `edits.settle_in_place` decides on it for each network that is built.
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
    """The twin that computes the same as an in-place function or method; `None` if it is none."""
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
    found: list[tuple[str, str, int, bool, tuple[str, ...]]] = []
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
        own = [_between(module, ancestors, order, *operands)]
        own.append(_between(module, ancestors, order, *reversed(operands)))
        branch = int(_weight(module, own[1]) > _weight(module, own[0]))
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        layers = tuple(
            type(module.get_submodule(str(inner.target))).__name__
            for inner in own[branch]
            if inner.op == "call_module"
        )
        found.append((node.name, path, branch, not own[1 - branch], layers))
    held = Counter(path for _, path, *_ in found)
    seen: Counter[str] = Counter()
    taken = {key for key, _ in module.named_modules()}
    additions = []
    for node_name, path, branch, identity, layers in found:
        seen[path] += 1
        number = str(seen[path]) if held[path] > 1 else ""
        name = f"{path or 'root'}:{number}" if number else path or "root"
        gate = f"{path}.gate{number}".lstrip(".")
        while gate in taken:
            gate += "_"
        additions.append(Addition(name, path, gate, node_name, branch, identity, layers))
    return additions


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node takes only numbers from its input: they tie no two values together."""
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim")
    )


def _between(
    module: fx.GraphModule,
    ancestors: Mapping[fx.Node, int],
    order: Mapping[fx.Node, int],
    operand: fx.Node,
    other: fx.Node,
) -> list[fx.Node]:
    """What leads to `operand` and not to `other`, in order."""
    own, found, waiting = ancestors[operand] & ~ancestors[other], set(), [operand]
    while waiting:
        node = waiting.pop()
        if own >> order[node] & 1 and node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return sorted(found, key=order.__getitem__)


def _weight(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> tuple[int, int]:
    """Parameters of the nodes, and the number of nodes to decide where there are none."""
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
    """The tensors at or below a target of the graph, by their names in the state dict."""
    found = attribute(module, target)
    if isinstance(found, Tensor):
        return {target: found}
    return {f"{target}.{key}": value for key, value in found.state_dict(keep_vars=True).items()}


def kind(module: nn.Module, node: fx.Node) -> Any:
    """What a node does: the class of its module, its function or the name of its method."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target)))
    return node.target if node.op in ("call_function", "call_method") else None


def pads_with_zeros(node: fx.Node) -> bool:
    """Whether a node pads with nothing else than zeros."""
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    return bool(given.get("mode", "constant") == "constant" and given.get("value") in (None, 0))


def attribute(module: nn.Module, target: str) -> Any:
    """The module or tensor at a target of the graph."""
    owner, _, last = target.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def forget_constants(module: nn.Module, keys: Set[str]) -> None:
    """Keep out of the state dict the buffers that the base keeps out of it."""
    for key, buffer in list(module.named_buffers()):
        if key not in keys:  # fx makes every buffer it meets a persistent one
            owner, _, last = key.rpartition(".")
            delattr(module.get_submodule(owner), last)
            module.get_submodule(owner).register_buffer(last, buffer, persistent=False)
