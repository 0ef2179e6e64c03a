"""The edits of a traced network, and the graph and module that result.

Every edit replaces a residual addition `add(f(x), s(x))`: by s (the block is removed), by f (its
shortcut is removed), or by the addition of a gated or scaled f and s. Nodes that become unused
are erased. Source of the gates: Savarese, Mazza, Figueiredo, 2016,
https://arxiv.org/abs/1611.01260.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.networks.additions import ADDITIONS, Addition, operands, repeated
from gatepruner.networks.graph import Trace, forget_constants, identifier
from gatepruner.networks.modes import call_as_modules
from gatepruner.networks.narrowing import (
    Narrowed,
    narrow_heads,
    narrow_layers,
    narrowed_tensor,
)
from gatepruner.networks.nodes import (
    OWNS_TENSORS,
    attribute,
    erase_unused,
    kind,
    pads_with_zeros,
    tensors_of,
)

# Operations whose outputs are no views.
FRESH = {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d, *ADDITIONS}


class Gate(nn.Module):
    """Residual gate `relu(k) * f` with one learned scalar k, initially 1."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.ones(()))

    def forward(self, f: Tensor) -> Tensor:
        return F.relu(self.k) * f


class PlainGate(Gate):
    """Plain gate `g * f + (1 - g) * s` with `g = relu(k)`."""

    def forward(self, f: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        g = F.relu(self.k)
        return g * f + (1 - g) * s


class Scale(nn.Module):
    """A constant factor that replaces a gate which cannot be folded into an affine layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c: Tensor
        self.register_buffer("c", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.c * x


GATES = ("residual", "plain")
Channels = Annotated[int, msgspec.Meta(ge=1, le=2**24)]


class EditsDocument(msgspec.Struct, forbid_unknown_fields=True):
    """Edits as JSON."""

    gate: Literal["", "residual", "plain"]
    gated: list[str]
    removed: list[str]
    shortcuts_removed: list[str]
    scaled_branches: list[str]
    scaled_shortcuts: list[str]


class NarrowedEditsDocument(EditsDocument):
    """Edits with narrowed layers as JSON."""

    narrowed: dict[str, Annotated[list[Channels], msgspec.Meta(min_length=1, max_length=5)]] = {}


# The edits that name blocks.
NAMING = ("gated", "removed", "shortcuts_removed", "scaled_branches", "scaled_shortcuts")


@dataclass(frozen=True)
class Edits:
    """All edits of a network, by block name.

    Attributes:
        gate: kind of the gates: `"residual"`, `"plain"`, or `""` without gates.
        gated: blocks with a gate.
        removed: blocks without their branch.
        shortcuts_removed: blocks without their shortcut.
        scaled_branches: blocks whose branch has a constant factor.
        scaled_shortcuts: blocks whose shortcut has a constant factor.
        narrowed: layers with fewer channels than the base's, and their sizes; see
            `gatepruner.networks.narrowing`.
    """

    gate: str = ""
    gated: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    shortcuts_removed: tuple[str, ...] = ()
    scaled_branches: tuple[str, ...] = ()
    scaled_shortcuts: tuple[str, ...] = ()
    narrowed: Narrowed = ()

    def contradictions(self) -> list[str]:
        """Blocks that the edits name twice, or in lists that exclude each other."""
        twice = [
            f"{name} is {edit} twice"
            for edit in (field.name for field in fields(self) if field.name in NAMING)
            for name, count in Counter(getattr(self, edit)).items()
            if count > 1
        ]
        pairs = [
            *(("removed", other) for other in ("gated", "scaled_branches", "scaled_shortcuts")),
            ("removed", "shortcuts_removed"),
            ("shortcuts_removed", "scaled_shortcuts"),
        ]
        both = [
            f"{name} is both {one} and {other}"
            for one, other in pairs
            for name in sorted({*getattr(self, one)} & {*getattr(self, other)})
        ]
        kind = ["there are gates of no kind"] if self.gated and not self.gate else []
        return twice + both + kind

    def forgetting(self, names: Collection[str]) -> Edits:
        """The edits without the gates and factors of these blocks."""

        def others(blocks: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(block for block in blocks if block not in names)

        return replace(
            self,
            gated=others(self.gated),
            scaled_branches=others(self.scaled_branches),
            scaled_shortcuts=others(self.scaled_shortcuts),
        )


class _Editor:
    """Inserts gates and factors into a new graph, in place of the base's additions."""

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.graph = fx.Graph()
        self.new: dict[str, nn.Module] = {}

    def insert(self, target: str, kind: type[nn.Module], *values: fx.Node) -> fx.Node:
        self.new[target] = kind()
        return self.graph.call_module(target, values)

    def join(self, node: fx.Node, addition: Addition, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The node that replaces the addition at `node`; `env` has what replaces those before."""
        edits, name, pair = self.edits, addition.name, operands(node)
        removed, lone = name in edits.removed, name in edits.shortcuts_removed
        plain = edits.gate == "plain" and name in edits.gated
        values = [env[operand] for operand in pair]
        if addition.weighted and (removed or lone or plain):
            alpha = fx.node.map_arg(node.kwargs["alpha"], env.__getitem__)
            values[1] = self.graph.call_function(operator.mul, (values[1], alpha))
        f, s = values[addition.branch], values[1 - addition.branch]
        if removed:
            return s
        if name in edits.scaled_shortcuts and not lone:
            s = self.insert(f"{addition.gate}_shortcut", Scale, s)
        f = self.gate(addition, f, s)
        if lone and repeated(pair[addition.branch], node):
            return self.graph.call_method("expand_as", (f, s))
        if lone or plain:
            return f
        # The order of the operands decides on the memory layout of the sum, and thus on rounding.
        new = dict(zip(pair, (s, f) if addition.branch else (f, s), strict=True))
        return self.graph.node_copy(node, lambda value: new.get(value) or env[value])

    def gate(self, addition: Addition, f: fx.Node, s: fx.Node) -> fx.Node:
        """The gated branch; a plain gate also adds the shortcut."""
        if addition.name in self.edits.scaled_branches:
            f = self.insert(f"{addition.gate}_branch", Scale, f)
        if addition.name not in self.edits.gated:
            return f
        adds = self.edits.gate == "plain" and addition.name not in self.edits.shortcuts_removed
        return self.insert(addition.gate, *((PlainGate, f, s) if adds else (Gate, f)))


@dataclass(frozen=True)
class Edited:
    """A graph after its edits.

    Attributes:
        graph: its nodes; `node.meta["base"]` is the name of the base's node it was copied from.
        new: the added gates and factors, by target.
        joins: for each block that is still used, the names of the nodes whose values enter and
            leave it: its shortcut, and what replaces its addition.
        values: for each node of the base whose value is still used, the name of the node that has
            its place.
    """

    graph: fx.Graph
    new: dict[str, nn.Module]
    joins: dict[str, tuple[str, str]]
    values: dict[str, str]


def edited(traced: Trace, edits: Edits) -> Edited:
    """Apply the edits to a traced base, and erase unused nodes."""
    editor, sizes = _Editor(edits), dict(edits.narrowed)
    additions = {addition.node: addition for addition in traced.additions.values()}
    env: dict[fx.Node, fx.Node] = {}
    joins: dict[str, tuple[fx.Node, fx.Node]] = {}
    for node in traced.module.graph.nodes:
        if addition := additions.get(node.name):
            env[node] = editor.join(node, addition, env)
            shortcut = operands(node)[1 - addition.branch]
            joins[addition.name] = env[shortcut], env[node]
        elif _repeats(traced.module, node, env):
            env[node] = env[node.args[0]]
        else:
            env[node] = editor.graph.node_copy(node, env.__getitem__)
            env[node].meta = {**node.meta, "base": node.name}
            _allow_copy(env[node])
            if sizes:
                narrow_heads(node, env[node], sizes)
    erase_unused(editor.graph)
    kept = set(editor.graph.nodes)
    used = {node.target for node in kept if node.op == "call_module"}
    return Edited(
        editor.graph,
        {target: module for target, module in editor.new.items() if target in used},
        {name: (s.name, joined.name) for name, (s, joined) in joins.items() if joined in kept},
        {node.name: value.name for node, value in env.items() if value in kept},
    )


def _allow_copy(node: fx.Node) -> None:
    """Let `view` copy where the memory layout of what took an addition's place needs that."""
    of_type = any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))
    if (node.op, node.target) == ("call_method", "view") and not of_type:
        node.target = "reshape"


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
    """Whether a node applies an activation whose input has already passed the same one."""
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
    """The edited network as a new module on the meta device, without weights."""
    result = edited(traced, edits)
    memo: dict[int, Any] = {}
    root: dict[str, Any] = {
        target: copy.deepcopy(attribute(traced.module, target), memo)
        for target in _targets(result.graph)
        if target not in result.new
    }
    narrow_layers(root, edits.narrowed)
    new = {target: _plain(module) for target, module in result.new.items()}
    module = fx.GraphModule({**root, **new}, result.graph, class_name=identifier(name))
    forget_constants(module, traced.keys | {f"{target}.c" for target in result.new})
    settle_in_place(module)
    call_as_modules(module)
    return module.eval()


def _plain(module: nn.Module) -> fx.GraphModule:
    """A module of ours as one of PyTorch's own, which is unpickled without gatepruner."""
    traced = fx.symbolic_trace(module)
    for node in traced.graph.nodes:
        node.type = None  # annotations are texts, which torch 2.6 takes for what they name
    return fx.GraphModule(traced, traced.graph, class_name=type(module).__name__)


def _targets(graph: fx.Graph) -> dict[str, None]:
    """The distinct targets with tensors, in the order of the graph."""
    return dict.fromkeys(str(node.target) for node in graph.nodes if node.op in OWNS_TENSORS)


def settle_in_place(module: fx.GraphModule) -> None:
    """Let an activation overwrite its input only where no other node uses that input.

    After an edit, the input may be a shortcut, which other nodes use.
    """
    for node in module.graph.nodes:
        if node.op == "call_module" and getattr(module.get_submodule(node.target), "inplace", 0):
            (above,) = node.all_input_nodes
            fresh = above.target is operator.add or kind(module, above) in FRESH
            if not fresh or len(above.users) > 1:
                setattr(module.get_submodule(node.target), "inplace", False)  # noqa: B010


def state_keys(traced: Trace, result: Edited, narrowed: Narrowed) -> dict[str, Tensor]:
    """The state dict of an edited network, on the meta device, without assembling the network."""
    state: dict[str, Tensor] = {}
    sizes = dict(narrowed)
    for target in _targets(result.graph):
        if target in result.new:
            own = result.new[target].state_dict(keep_vars=True)
            state |= {f"{target}.{key}": tensor for key, tensor in own.items()}
        else:
            own = tensors_of(traced.module, target)
            state |= {
                key: narrowed_tensor(key, tensor, sizes)
                for key, tensor in own.items()
                if key in traced.keys
            }
    return state
