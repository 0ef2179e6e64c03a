"""One graph of two: that of a network in training and that in evaluation.

Where they differ, the graph has a module that reads the mode when it runs.
"""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from gatepruner.networks.nodes import OWNS_TENSORS, path_of, tensors_of
from gatepruner.networks.tracer import UntraceableError

ONE_MODE = "some of its layers are used in training only, or in evaluation only"


def calling(module: nn.Module, function: Callable[..., Any], *arguments: Any) -> nn.Module:
    """The module, with a function of the standard library as its `forward`.

    It has no class of ours, so that a network with it is unpickled without gatepruner.

    Args:
        module: a container of PyTorch's.
        function: what `forward` calls.
        arguments: the first arguments of the function.
    """
    setattr(module, "forward", functools.partial(function, *arguments))  # noqa: B010
    return module


def by_mode(training: Any, evaluation: Any) -> nn.Module:
    """A module that returns one value in training and another in evaluation."""
    flag = nn.Module()
    calling(flag, getattr, flag, "training")
    if training is True and evaluation is False:
        return flag
    values = calling(nn.Module(), operator.getitem, (evaluation, training))
    graph = fx.Graph()
    graph.output(graph.call_module("values", (graph.call_module("flag"),)))
    return fx.GraphModule({"flag": flag, "values": values}, graph, class_name="Mode")


def switch(training: nn.Module, evaluation: nn.Module, inputs: int) -> nn.Module:
    """A module that computes one thing in training and another in evaluation.

    Args:
        training: computes it in training.
        evaluation: computes it in evaluation, from the same inputs.
        inputs: how many there are.
    """
    parts = nn.ModuleList([evaluation, training])
    calling(parts, operator.getitem, parts)
    graph = fx.Graph()
    values = [graph.placeholder(f"value_{index}") for index in range(inputs)]
    part = graph.call_module("parts", (graph.call_module("mode"),))
    graph.output(graph.call_method("forward", (part, *values)))
    return fx.GraphModule(
        {"mode": by_mode(True, False), "parts": parts}, graph, class_name="Switch"
    )


def call_as_modules(module: fx.GraphModule) -> None:
    """Let modules call attention whose dropout depends on the mode.

    To unpickle a graph, PyTorch traces its code with modules as they are. The function itself
    takes no traced number there (torch 2.6).
    """
    for index, node in enumerate(module.graph.nodes):
        if node.target is F.scaled_dot_product_attention and _dropout(node) is not None:
            target = f"attention_{index}"
            while hasattr(module, target):
                target += "_"
            module.add_module(target, calling(nn.Module(), node.target))
            node.op, node.target = "call_module", target
    module.recompile()


def _dropout(node: fx.Node) -> fx.Node | None:
    """The dropout of a call of attention, if that is computed."""
    given = node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else None)
    return given if isinstance(given, fx.Node) else None


def only_in_training(module: nn.Module) -> bool:
    """Whether a module is a switch that gives a constant in evaluation."""
    parts = dict(module.named_children()).get("parts")
    if not isinstance(parts, nn.ModuleList) or not isinstance(parts[0], fx.GraphModule):
        return False
    (output,) = (node for node in parts[0].graph.nodes if node.op == "output")
    return not isinstance(output.args[0], fx.Node)


def joined(
    root: nn.Module, training: fx.Graph, evaluation: fx.Graph
) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """One graph for both modes, and the modules that read the mode, by target.

    Args:
        root: the modules of both graphs.
        training: the graph of the network in training, without mutations.
        evaluation: that in evaluation.

    Raises:
        UntraceableError: layers with weights are used in one of the modes only.
    """
    joining = _Joining(root, _pairs(training, evaluation))
    for node in evaluation.nodes:
        if node in joining.partner:
            joining.copy(node)
    return joining.graph, joining.modules


def _pairs(training: fx.Graph, evaluation: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The nodes of the graph in evaluation with their counterparts in training."""
    ours, theirs = list(evaluation.nodes), list(training.nodes)
    keys, others = ([_key(node) for node in nodes] for nodes in (ours, theirs))
    if keys == others:
        return dict(zip(ours, theirs, strict=True))
    matcher = difflib.SequenceMatcher(None, keys, others, autojunk=False)
    return {
        ours[block.a + index]: theirs[block.b + index]
        for block in matcher.get_matching_blocks()
        for index in range(block.size)
    }


def _key(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.target, path_of(node), len(node.args), tuple(node.kwargs)


class _Joining:
    """The common graph, a copy of the nodes that both graphs have."""

    def __init__(self, root: nn.Module, partner: dict[fx.Node, fx.Node]) -> None:
        self.root = root
        self.partner = partner
        self.inverse = {theirs: ours for ours, theirs in partner.items()}
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.modules: dict[str, nn.Module] = {}
        self.switched: set[fx.Node] = set()

    def copy(self, node: fx.Node) -> None:
        """Copy a node that both graphs have; its arguments may differ."""
        theirs = self.partner[node]
        args = self.join(theirs.args, node.args)
        kwargs = self.join(theirs.kwargs, node.kwargs)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        new.meta = dict(node.meta)
        self.env[node] = new

    def join(self, in_training: Any, in_evaluation: Any) -> Any:
        """An argument that has one value in training and another in evaluation."""
        a, b = in_training, in_evaluation
        if isinstance(b, fx.Node) and self.partner.get(b) is a:
            return self.env[b]
        constant = not _nodes_in(a) and not _nodes_in(b)
        if constant and repr(a) == repr(b):
            return b
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
            return type(b)(map(self.join, a, b))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self.join(a[key], value) for key, value in b.items()}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*map(self.join, *((s.start, s.stop, s.step) for s in (a, b))))
        return self._call(by_mode(a, b)) if constant else self._switch(a, b)

    def _call(self, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        target = f"mode_{len(self.modules)}"
        self.modules[target] = module
        return self.graph.call_module(target, inputs)

    def _switch(self, a: Any, b: Any) -> fx.Node:
        """A call of a module that computes one of two values from what both graphs have."""
        own_a, above_a = self._between(a, self.inverse)
        own_b, above_b = self._between(b, self.partner)
        inputs = list(dict.fromkeys([*above_b, *map(self.inverse.__getitem__, above_a)]))
        names = {node: f"value_{index}" for index, node in enumerate(inputs)}
        names |= {self.partner[node]: name for node, name in names.items()}
        part_a, part_b = self._part(names, own_a, a), self._part(names, own_b, b)
        return self._call(switch(part_a, part_b, len(inputs)), *map(self.env.__getitem__, inputs))

    def _between(
        self, value: Any, common: dict[fx.Node, fx.Node]
    ) -> tuple[list[fx.Node], list[fx.Node]]:
        """The nodes of one graph alone that lead to a value, and the common ones before them."""
        own: set[fx.Node] = set()
        above: dict[fx.Node, None] = {}
        waiting = _nodes_in(value)
        while waiting:
            node = waiting.pop()
            if node in common:
                above[node] = None
            elif node not in own:
                if node in self.switched or self._owns_tensors(node):
                    raise UntraceableError({path_of(node): ONE_MODE})
                own.add(node)
                waiting.extend(node.all_input_nodes)
        self.switched |= own
        in_order = [node for node in next(iter(own)).graph.nodes if node in own] if own else []
        return in_order, list(above)

    def _owns_tensors(self, node: fx.Node) -> bool:
        return node.op in OWNS_TENSORS and bool(tensors_of(self.root, str(node.target)))

    def _part(self, names: dict[fx.Node, str], own: Iterable[fx.Node], value: Any) -> nn.Module:
        """A module that computes a value from the inputs of a switch."""
        graph = fx.Graph()
        made = {name: graph.placeholder(name) for name in dict.fromkeys(names.values())}
        env = {node: made[name] for node, name in names.items()}
        for node in own:
            env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(fx.node.map_arg(value, env.__getitem__))
        return fx.GraphModule(self.root, graph, class_name="Part")


def _nodes_in(value: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg(value, nodes.append)
    return nodes
