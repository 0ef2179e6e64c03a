"""Making a graph pure: no node overwrites the value of another one.

Edits and merged networks require that. An operation that overwrites its first input becomes one
that returns a new value (`x.add_(y)` becomes `x.add(y)`). Any other becomes a module that
overwrites a copy. Later nodes use the new value, and views are taken of it again. A dry run shows
what is overwritten, whatever the operation is called.
"""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.networks.dry_run import DryRun, storages, tensors_in
from gatepruner.networks.nodes import path_of, tensors_of
from gatepruner.networks.tracer import UntraceableError

OUT_OF_PLACE: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, f"{name}_" if name in ("and", "or") else name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
}
# Their namesakes without an underscore take the probabilities from the tensor.
NO_NAMESAKE = {"bernoulli_"}


@dataclass
class Overwriting:
    """The modules that overwrite a copy of their input, by the code that they run."""

    modules: dict[str, fx.GraphModule] = field(default_factory=dict)

    def target(self, module: fx.GraphModule) -> str:
        """The name of a module; equal ones have the same name in every graph."""
        self.modules.setdefault(module.code, module)
        return f"overwrite_{list(self.modules).index(module.code)}"

    def modules_by_target(self) -> dict[str, nn.Module]:
        """The modules by name."""
        return {f"overwrite_{index}": each for index, each in enumerate(self.modules.values())}


def without_mutations(
    root: nn.Module, graph: fx.Graph, run: DryRun, overwriting: Overwriting
) -> fx.Graph:
    """A graph that computes the same as a given one, and overwrites no value.

    Args:
        root: the graph's modules. Those with a flag `inplace` keep it: `edits.settle_in_place` sets
            it in each network that is built.
        graph: it is not changed.
        run: of all its nodes.
        overwriting: the modules that overwrite a copy; new ones are added.

    Raises:
        UntraceableError: a buffer or a parameter is overwritten, or a value in a way that has no
            pure equivalent.
    """
    return _Rewriting(root, run, overwriting).of(graph)


class _Rewriting:
    """A copy of a graph; `env` has the present value of every node of the original."""

    def __init__(self, root: nn.Module, run: DryRun, overwriting: Overwriting) -> None:
        self.root = root
        self.run = run
        self.overwriting = overwriting
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.sharing: dict[Hashable, list[fx.Node]] = defaultdict(list)  # by storage
        self.order: dict[fx.Node, int] = {}

    def of(self, graph: fx.Graph) -> fx.Graph:
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        refused: dict[str, str] = {}
        for node in self.order:
            node.type = None  # an annotation; PyTorch 2.6 cannot pickle one that is a string
            try:
                self._rewrite(node)
            except UntraceableError as error:
                refused |= error.reasons
                self.env[node] = self._copy(node)
        if refused:
            raise UntraceableError(refused)
        return self.graph

    def _rewrite(self, node: fx.Node) -> None:
        written = self.run.overwritten.get(node, ())
        if written and not self._trains_statistics(node, written):
            self._overwrite(node, written)
        else:
            self.env[node] = self._copy(node)
        for storage in storages(self.run.values[node]):
            self.sharing[storage].append(node)

    def _copy(self, node: fx.Node) -> fx.Node:
        return self.graph.node_copy(node, self.env.__getitem__)

    def _trains_statistics(self, node: fx.Node, written: tuple[fx.Node, ...]) -> bool:
        """Whether a node with a result of its own updates buffers, as `F.batch_norm` does."""
        buffers = all(value.op == "get_attr" for value in written)
        own = storages(self.run.values[node])
        inputs = set[Hashable]().union(*(storages(self.run.values[value]) for value in written))
        return buffers and bool(own) and not own & inputs

    def _overwrite(self, node: fx.Node, written: tuple[fx.Node, ...]) -> None:
        """Replace a node that overwrites its inputs, and what shares memory with them."""
        values, target = self.run.values, written[0]
        memory = set[Hashable]().union(*(storages(values[value]) for value in written))
        sharing = self._distinct(self.sharing[next(iter(memory))])
        base, returned = sharing[0], values[node] is values[target]
        others = [each for each in sharing if values[each] is not values[target]]
        used = any(self.order[user] > self.order[node] for each in others for user in each.users)
        pure = self._out_of_place(node) if returned else None
        if base.op == "get_attr":
            key = str(base.target).rpartition(".")[2]
            raise UntraceableError({path_of(node): f"its buffer {key} gets another value"})
        if len(memory) > 1 or (node.users and not returned):
            raise refusal(node)
        if pure and (not used or values[base] is values[target]):
            self._renew(target, pure)
        elif isinstance(values[base], Tensor):
            self._renew(base, self._overwritten_copy(node, sharing))
            others = sharing[1:]
        else:
            raise refusal(node)
        for view in others if used or not pure else ():
            self._renew(view, self._copy(view))
        if returned:
            self.env[node] = self.env[target]

    def _distinct(self, sharing: list[fx.Node]) -> list[fx.Node]:
        """Of the nodes with the very same tensor, only the first, which computes it."""
        first = {id(self.run.values[node]): node for node in reversed(sharing)}
        return [node for node in sharing if first[id(self.run.values[node])] is node]

    def _renew(self, node: fx.Node, new: fx.Node) -> None:
        """Let all nodes with the very tensor of one node have a new value."""
        value = self.run.values[node]
        for storage in storages(value):
            for each in self.sharing[storage]:
                if self.run.values[each] is value:
                    self.env[each] = new

    def _out_of_place(self, node: fx.Node) -> fx.Node | None:
        """A call like an in-place one that returns a new value, if there is one."""
        value = self.run.values[node]
        types = {tensor.dtype for each in node.all_input_nodes for tensor in self._tensors(each)}
        if any(torch.promote_types(value.dtype, other) != value.dtype for other in types):
            return None  # the result would be of the wider type
        target, kwargs = namesake(self.root, node), dict(node.kwargs)
        if target is None:
            return None
        if "inplace" in kwargs:
            kwargs["inplace"] = False
        new = self._copy(node)
        new.target, new.kwargs = target, fx.node.map_arg(kwargs, self.env.__getitem__)
        return new

    def _tensors(self, node: fx.Node) -> list[Tensor]:
        return list(tensors_in(self.run.values[node]))

    def _overwritten_copy(self, node: fx.Node, sharing: list[fx.Node]) -> fx.Node:
        """A call of a module that copies the first value, and overwrites the copy as the node does.

        Args:
            node: it overwrites a value, or a view of it.
            sharing: that value and its views.
        """
        first = {id(self.run.values[each]): each for each in sharing}
        first_of = {each: first.get(id(self.run.values[each]), each) for each in self.order}
        steps, waiting = {node}, [node]
        while waiting:
            above = map(first_of.__getitem__, waiting.pop().all_input_nodes)
            waiting += [each for each in above if each in sharing[1:] and each not in steps]
            steps |= {*waiting}
        in_order = sorted(steps, key=self.order.__getitem__)
        given = [first_of[value] for step in in_order for value in step.all_input_nodes]
        inputs = dict.fromkeys([sharing[0], *(value for value in given if value not in steps)])
        inner = fx.Graph()
        env = {value: inner.placeholder(f"value_{index}") for index, value in enumerate(inputs)}
        copied = env[sharing[0]] = inner.call_method("clone", (env[sharing[0]],))
        for step in in_order:
            env[step] = inner.node_copy(step, lambda value: env[first_of[value]])
        inner.output(copied)
        module = fx.GraphModule(self._modules(steps), inner, class_name="Overwriting")
        new = self.graph.call_module(
            self.overwriting.target(module), tuple(self.env[value] for value in inputs)
        )
        new.meta = {**node.meta, "shape": sharing[0].meta.get("shape")}
        return new

    def _modules(self, steps: set[fx.Node]) -> dict[str, nn.Module]:
        """Copies of the modules that some nodes call; they have no tensors."""
        modules = {}
        for node in steps:
            if node.op == "call_module":
                if tensors_of(self.root, str(node.target)):
                    raise refusal(node)
                modules[str(node.target)] = copy.deepcopy(self.root.get_submodule(str(node.target)))
        return modules


def namesake(root: nn.Module, node: fx.Node) -> Any:
    """The target of the out-of-place version of an in-place operation; `None` if it has none."""
    name = getattr(node.target, "__name__", str(node.target))
    if node.kwargs.get("inplace"):
        return node.target
    if node.op == "call_module":
        return node.target if getattr(root.get_submodule(name), "inplace", False) else None
    if node.target in OUT_OF_PLACE:
        return OUT_OF_PLACE[node.target]
    if not name.endswith("_") or name.endswith("__") or name in NO_NAMESAKE:
        return None
    if node.op == "call_method":
        return name[:-1] if hasattr(Tensor, name[:-1]) else None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


def refusal(node: fx.Node) -> UntraceableError:
    """The error for a node that overwrites a value in a way that has no pure equivalent."""
    name = getattr(node.target, "__name__", str(node.target))
    return UntraceableError({path_of(node): f"{name} overwrites a value that others use"})
