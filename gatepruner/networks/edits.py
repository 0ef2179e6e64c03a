"""The few edits that can be made to a traced network, and the network they make.

Every edit replaces a residual addition `add(f(x), s(x))`: by s (the block is removed), by f (its
shortcut is removed), or by the addition of a gated or scaled f and s. What nothing uses
afterwards is left out. Source of the gates: Savarese, Mazza, Figueiredo, 2016,
https://arxiv.org/abs/1611.01260.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.networks.graph import (
    OWNS_TENSORS,
    Addition,
    Trace,
    attribute,
    forget_constants,
    identifier,
    kind,
    pads_with_zeros,
    tensors_of,
)

FRESH = {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d}  # outputs are nobody's view


class Gate(nn.Module):
    """Residual gate `relu(k) * f`, one learned scalar k, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.ones(()))

    def forward(self, f: Tensor) -> Tensor:
        return F.relu(self.k) * f


class PlainGate(Gate):
    """Plain gate `g * f + (1 - g) * s` with `g = relu(k)`."""

    def forward(self, f: Tensor, s: Tensor | None = None) -> Tensor:
        g = F.relu(self.k)
        return g * f if s is None else g * f + (1 - g) * s


class Scale(nn.Module):
    """A constant factor: what is left of a gate that no affine layer could take up."""

    def __init__(self) -> None:
        super().__init__()
        self.c: Tensor
        self.register_buffer("c", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.c * x


GATES: dict[str, type[Gate]] = {"residual": Gate, "plain": PlainGate}


@dataclass(frozen=True)
class Edits:
    """What is done to the blocks of a network, by block name; nothing else ever is.

    Attributes:
        gate: kind of the gates, `"residual"`, `"plain"` or `""` where there are none.
        gated: blocks with a gate.
        removed: blocks without their branch.
        shortcuts_removed: blocks without their shortcut.
        scaled_branches: blocks whose branch has a constant factor.
        scaled_shortcuts: blocks whose shortcut has a constant factor.
    """

    gate: str = ""
    gated: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    shortcuts_removed: tuple[str, ...] = ()
    scaled_branches: tuple[str, ...] = ()
    scaled_shortcuts: tuple[str, ...] = ()

    def forgetting(self, names: Collection[str]) -> Edits:
        """Without what is done to the gates and factors of these blocks."""
        return replace(
            self,
            gated=tuple(name for name in self.gated if name not in names),
            scaled_branches=tuple(name for name in self.scaled_branches if name not in names),
            scaled_shortcuts=tuple(name for name in self.scaled_shortcuts if name not in names),
        )


class _Editor:
    """Copies a graph node by node, with something else in the place of each addition."""

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.graph = fx.Graph()
        self.new: dict[str, nn.Module] = {}

    def insert(self, target: str, kind: type[nn.Module], *values: fx.Node) -> fx.Node:
        self.new[target] = kind()
        return self.graph.call_module(target, values)

    def join(self, at: Addition, f: fx.Node, s: fx.Node) -> fx.Node:
        """What stands in the place of the addition of branch `f` and shortcut `s`."""
        name, edits = at.name, self.edits
        if name in edits.removed:
            return s
        if name in edits.scaled_shortcuts and name not in edits.shortcuts_removed:
            s = self.insert(f"{at.gate}_shortcut", Scale, s)
        f = self.gate(at, f, s)
        if name in edits.shortcuts_removed or (f.target == at.gate and edits.gate == "plain"):
            return f
        return self.graph.call_function(operator.add, (f, s))

    def gate(self, at: Addition, f: fx.Node, s: fx.Node) -> fx.Node:
        """The branch behind its gate; a plain gate takes the shortcut in, too."""
        if at.name in self.edits.scaled_branches:
            f = self.insert(f"{at.gate}_branch", Scale, f)
        if at.name not in self.edits.gated:
            return f
        whole = self.edits.gate == "plain" and at.name not in self.edits.shortcuts_removed
        return self.insert(at.gate, GATES[self.edits.gate], *((f, s) if whole else (f,)))


@dataclass(frozen=True)
class Edited:
    """A graph after its edits.

    Attributes:
        graph: the nodes; `node.meta["base"]` is the name of the base's node that one comes from.
        new: the gates and scales that the base does not have, by target.
        joins: for each block that is still reached, the names of the nodes whose values enter and
            leave it: its shortcut, and what stands in the place of its addition.
    """

    graph: fx.Graph
    new: dict[str, nn.Module]
    joins: dict[str, tuple[str, str]]


def edited(traced: Trace, edits: Edits) -> Edited:
    """Make the edits; nothing that no other node uses is left."""
    editor = _Editor(edits)
    at = {addition.node: addition for addition in traced.additions.values()}
    env: dict[fx.Node, fx.Node] = {}
    places: dict[str, tuple[fx.Node, fx.Node]] = {}
    for node in traced.module.graph.nodes:
        if addition := at.get(node.name):
            f, s = env[node.args[addition.branch]], env[node.args[1 - addition.branch]]
            env[node] = editor.join(addition, f, s)
            places[addition.name] = s, env[node]
        elif _repeats(traced.module, node, env):
            env[node] = env[node.args[0]]
        else:
            env[node] = editor.graph.node_copy(node, env.__getitem__)
            env[node].meta = {**node.meta, "base": node.name}
    for node in reversed(editor.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            editor.graph.erase_node(node)
    kept = set(editor.graph.nodes)
    used = {node.target for node in kept if node.op == "call_module"}
    return Edited(
        editor.graph,
        {target: module for target, module in editor.new.items() if target in used},
        {name: (s.name, joined.name) for name, (s, joined) in places.items() if joined in kept},
    )


ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu",
    F.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    "relu_": "relu",
    nn.ReLU6: "relu6",
    F.relu6: "relu6",
}
KEEPS_RANGE = {operator.getitem, F.pad, nn.Identity, nn.MaxPool2d, nn.Flatten, "flatten"}


def _repeats(module: fx.GraphModule, node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether a node is an activation of what that same activation has already been through."""
    activation = ACTIVATIONS.get(kind(module, node))
    if activation is None:
        return False
    above = env[node.all_input_nodes[0]]
    while "base" in above.meta and kind(module, above) in KEEPS_RANGE:
        if above.target is F.pad and not pads_with_zeros(above):
            return False
        above = above.all_input_nodes[0]
    return "base" in above.meta and ACTIVATIONS.get(kind(module, above)) == activation


def assemble(traced: Trace, edits: Edits, name: str) -> fx.GraphModule:
    """The edited network as a module on the meta device, without weights.

    Nothing in it is shared with the trace or with what was assembled before.
    """
    done = edited(traced, edits)
    copies: dict[int, Any] = {}
    root: dict[str, Any] = {
        target: copy.deepcopy(attribute(traced.module, target), copies)
        for target in (str(node.target) for node in done.graph.nodes if node.op in OWNS_TENSORS)
        if target not in done.new
    }
    module = fx.GraphModule({**root, **done.new}, done.graph, class_name=identifier(name))
    forget_constants(module, traced.keys | {f"{target}.c" for target in done.new})
    settle_in_place(module)
    return module.eval()


def settle_in_place(module: fx.GraphModule) -> None:
    """Let an activation overwrite its input only where nothing else can see that input.

    After an edit the input may be a shortcut, which others use.
    """
    for node in module.graph.nodes:
        if node.op == "call_module" and getattr(module.get_submodule(node.target), "inplace", 0):
            (above,) = node.all_input_nodes
            fresh = above.target is operator.add or kind(module, above) in FRESH
            if not fresh or len(above.users) > 1:
                setattr(module.get_submodule(node.target), "inplace", False)  # noqa: B010


def state_keys(traced: Trace, done: Edited) -> dict[str, Tensor]:
    """The state dict of an edited network, on the meta device, without assembling it."""
    found: dict[str, Tensor] = {}
    for target in dict.fromkeys(str(it.target) for it in done.graph.nodes if it.op in OWNS_TENSORS):
        if target in done.new:
            state = done.new[target].state_dict(keep_vars=True)
            found |= {f"{target}.{key}": value for key, value in state.items()}
        else:
            held = tensors_of(traced.module, target)
            found |= {key: value for key, value in held.items() if key in traced.keys}
    return found
