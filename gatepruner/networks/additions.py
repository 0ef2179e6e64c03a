"""Residual additions: where a graph has its blocks.

A residual block is an addition of two values that have a common ancestor, `add(f(x), s(x))`. The
operand with more parameters between the common ancestors and the addition is the branch f, the
other one the shortcut s.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from gatepruner.networks.nodes import OWNS_TENSORS, tensors_of

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


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


def find_additions(module: fx.GraphModule) -> list[Addition]:
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
