"""Residual additions: where a graph has its blocks.

A residual block is an addition `f(x) + s(x)` of two values that both depend on the values of the
input; or of which one does and is computed from the other, as with class tokens that begin as
parameters. Parameters, buffers, shapes, data types and devices in common make no block.
The operand with more parameters between the common ancestors and the addition is the branch f, the
other one the shortcut s. A shortcut has the shape of the sum: where it would have to be repeated,
as in a sum of relative positions along two axes, there is no block.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from gatepruner.networks.modes import only_in_training
from gatepruner.networks.nodes import OWNS_TENSORS, argument, function_name, tensors_of

CALLS = ("call_function", "call_method")
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
FORMS = {  # attributes, methods and functions that read the form of a tensor, not its values
    *("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "itemsize"),
    *("size", "dim", "numel", "nelement", "element_size", "stride", "is_floating_point", "len"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new"),
}
RANDOM = {  # functions and methods that draw random numbers
    *("rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "normal", "normal_"),
    *("uniform_", "bernoulli", "bernoulli_", "poisson", "multinomial", "random_", "exponential_"),
    *("log_normal_", "cauchy_", "geometric_"),
}
TAKE_FORMS = {"expand_as", "view_as", "reshape_as", "type_as", "to"}  # of their second tensor


@dataclass(frozen=True)
class Addition:
    """A residual addition of the traced base.

    Attributes:
        name: of its block.
        path: of the module that contains it.
        gate: target of its gate, and prefix of the targets of its factors.
        node: name of its node.
        branch: which operand is the branch, 0 or 1.
        weighted: whether the second operand has a factor, as in `torch.add(x, f, alpha=0.2)`.
        identity: whether the shortcut is the identity.
        layers: class names of the modules in the branch.
    """

    name: str
    path: str
    gate: str
    node: str
    branch: int
    weighted: bool
    identity: bool
    layers: tuple[str, ...]


def find_additions(module: fx.GraphModule) -> list[Addition]:
    """The residual additions in the order of depth."""
    ancestors: dict[fx.Node, int] = {}  # a set of nodes as the bits of one integer
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    inputs = sum(1 << index for node, index in order.items() if node.op == "placeholder")
    additions = []
    for node, index in order.items():
        ancestors[node] = 1 << index
        for value in _values_of(node):
            ancestors[node] |= ancestors[value]
        pair = operands(node)
        if not pair or not _residual(pair, ancestors, order, inputs):
            continue
        own = [_between(ancestors, order, *pair), _between(ancestors, order, *reversed(pair))]
        if _is_noise(module, own):
            continue
        addition = _addition(module, node, own)
        if not repeated(pair[1 - addition.branch], node):
            additions.append(addition)
    return _named(additions, {key for key, _ in module.named_modules()})


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two values that a node adds; empty for a node that does not add two values."""
    if node.op not in CALLS or node.target not in ADDITIONS:
        return ()
    pair = argument(node, 0, "input"), argument(node, 1, "other")
    distinct = pair[0] is not pair[1] and all(isinstance(value, fx.Node) for value in pair)
    return pair if distinct else ()


def repeated(operand: fx.Node, node: fx.Node) -> bool:
    """Whether an operand of an addition is repeated along an axis to have the shape of the sum."""
    shapes = [value.meta.get("shape") for value in (operand, node)]
    return None not in shapes and shapes[0] != shapes[1]


def _residual(
    pair: tuple[fx.Node, ...],
    ancestors: Mapping[fx.Node, int],
    order: Mapping[fx.Node, int],
    inputs: int,
) -> bool:
    """Whether both operands depend on the inputs, or one does and is computed from the other."""
    dependent = [value for value in pair if ancestors[value] & inputs]
    if len(dependent) != 1:
        return len(dependent) == 2
    (other,) = (value for value in pair if value not in dependent)
    # A bare parameter is a bias that is added once more.
    return other.op != "get_attr" and bool(ancestors[dependent[0]] >> order[other] & 1)


def _is_noise(module: fx.GraphModule, own: list[list[fx.Node]]) -> bool:
    """Whether one operand is noise: without parameters, and drawn at random or in training only."""
    last = [nodes[-1] for nodes in own if nodes and nodes[-1].op == "call_module"]
    if any(only_in_training(module.get_submodule(str(node.target))) for node in last):
        return True
    nodes = [node for nodes in own for node in nodes]
    names = {str(function_name(node.target) or node.target) for node in nodes if node.op in CALLS}
    return not RANDOM.isdisjoint(names) and not _weight(module, nodes)[0]


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
    weighted = bool(node.kwargs.get("alpha", 1) != 1)
    identity = not own[1 - branch] and not (weighted and branch == 0)
    return Addition("", path, "", node.name, branch, weighted, identity, layers)


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


def _values_of(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node uses, without those of which it only uses the form."""
    if node.op not in CALLS:
        return node.all_input_nodes
    name = node.args[1] if node.target is getattr else function_name(node.target) or node.target
    if name in FORMS:
        return []
    return node.all_input_nodes[:1] if name in TAKE_FORMS else node.all_input_nodes


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
            waiting.extend(_values_of(node))
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
