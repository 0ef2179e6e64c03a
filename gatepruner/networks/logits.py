"""The logits among what a network returns: a tensor, or one in a tuple, dict or dataclass."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, fx

from gatepruner.errors import ArchitectureError
from gatepruner.networks.dry_run import DryRun, tensors_in

NAMES = ("logits", "out")  # in the results of transformers and of torchvision's segmentation


def logits_of(result: Any, name: str) -> Tensor:
    """The logits in what a module has returned.

    Args:
        result: what the module returned.
        name: of the network, for error messages.

    Raises:
        ArchitectureError: it has several tensors, none of which is called logits, or no tensor.
    """
    for key in _path(result, name):
        result = _entry(result, key)
    return result  # type: ignore[no-any-return]


def return_logits(graph: fx.Graph, run: DryRun, name: str) -> None:
    """Let a graph return the logits alone."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    for key in _path(run.value(output), name):
        if isinstance(result, fx.Node) and _is_plain_dataclass(result.target):
            result = result.kwargs[key]
        elif isinstance(result, fx.Node):
            with graph.inserting_before(output):
                result = graph.call_function(operator.getitem, (result, key))
        else:
            result = result[key]
    output.args = (result,)


def _path(result: Any, name: str) -> list[Any]:
    """The keys and indices that lead from what a network returns to its logits."""
    if isinstance(result, Tensor):
        return []
    entries, named = dict[Any, Any](), dict[Any, Any]()
    if isinstance(result, (tuple, list)):
        entries = dict(enumerate(result))
        named = {name: index for index, name in enumerate(getattr(result, "_fields", ()))}
    elif isinstance(result, Mapping):
        entries, named = dict(result), {key: key for key in result}
    elif _is_plain_dataclass(type(result)):
        entries = {field.name: getattr(result, field.name) for field in fields(result)}
        named = {key: key for key in entries}
    held = [key for key, value in entries.items() if _holds_tensors(value)]
    held = [named[key] for key in NAMES if key in named] or held
    if len(held) != 1:
        kind = f"{len(held)} tensors" if held else type(result).__name__
        raise ArchitectureError(
            f"{name} returns {kind}: expected the logits, alone or under the name logits; wrap "
            "the module in one that returns the logits alone"
        )
    return [held[0], *_path(entries[held[0]], name)]


def _entry(result: Any, key: Any) -> Any:
    return getattr(result, key) if _is_plain_dataclass(type(result)) else result[key]


def _is_plain_dataclass(kind: Any) -> bool:
    """Whether a class has fields that are read as attributes alone."""
    return isinstance(kind, type) and is_dataclass(kind) and not issubclass(kind, Mapping)


def _holds_tensors(value: Any) -> bool:
    return any(True for _ in tensors_in(value))
