"""Nodes of a graph: the operation of a node, its arguments and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

LISTS, DICTS = (immutable_list, list, tuple), (immutable_dict, dict)
OWNS_TENSORS = ("call_module", "get_attr")


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


def path_of(node: fx.Node) -> str:
    """The path of the module whose `forward` makes a node; empty for the root."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if node.op == "call_module" and paths[-1:] == [node.target]:
        paths.pop()
    return str(paths[-1]) if paths else ""


def erase_unused(graph: fx.Graph) -> None:
    """Erase the nodes whose values nobody uses."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def arguments_of(node: fx.Node, values: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
    """The arguments with which a node is called; its lists and dicts may be changed by the call."""

    def plain(value: Any) -> Any:
        if type(value) in LISTS:
            return (tuple if isinstance(value, tuple) else list)(map(plain, value))
        if type(value) in DICTS:
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, slice):
            return slice(*map(plain, (value.start, value.stop, value.step)))
        return values(value) if isinstance(value, fx.Node) else value

    return plain(node.args), plain(node.kwargs)


def pads_with_zeros(node: fx.Node) -> bool:
    """Whether a padding node pads with zeros."""
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    return bool(given.get("mode", "constant") == "constant" and given.get("value") in (None, 0))


def attribute(module: nn.Module, target: str) -> Any:
    """The module or tensor at a target of the graph."""
    owner, _, last = target.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def function_name(operation: Any) -> str:
    """The name of a function or class; empty for the name of a method."""
    return getattr(operation, "__name__", "")


def argument(node: fx.Node, index: int, name: str) -> Any:
    """The argument that a node passes by position or by name; `None` if it passes none."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def read_key(value: Any) -> str:
    """The key of a tensor that a graph reads; empty for any other value."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else ""
