"""Safetensors with a loader of a few lines, so that a network can be read without gatepruner."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.files import loader
from gatepruner.files.checkpoints import load, save
from gatepruner.files.timm import arguments_of
from gatepruner.files.writing import write_text
from gatepruner.networks.base import SIZED, traced
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network


def write(
    checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]
) -> tuple[Callable[[str], str], Mapping[str, Any]]:
    """Write gatepruner's own format, and beside it a loader if one reads it without gatepruner.

    A loader does if a library constructs the network and `torch.fx` traces it without help.
    """
    save(checkpoint, path, force=True)
    how = _construction(checkpoint.network)
    if how is None or not _loads(checkpoint, path, how):
        return lambda name: f"import gatepruner\nmodel = gatepruner.load({name!r}).build()", {}
    write_text(path.with_name(f"{path.name}.load.py"), inspect.getsource(loader))
    return (
        lambda name: f"# {name}.load.py loads it without gatepruner:\nmodel = load({name!r})"
    ), {"construct": how}


def read(checkpoint: Checkpoint, path: Path) -> Callable[[Tensor], Tensor]:
    """The file as gatepruner loads it."""
    return load(path, module=checkpoint.network.base.module).build()


def _construction(network: Network) -> dict[str, Any] | None:
    """What the loader has to know of a network; `None` if it could not construct it."""
    base, edits = network.base, network.edits
    if edits.gated or edits.scaled_branches or edits.scaled_shortcuts:
        return None
    additions = traced(base).additions
    nodes = [
        node.name for node in traced(base).module.graph.nodes if node.target in loader.ADDITIONS
    ]
    left = {additions[name].node: 1 - additions[name].branch for name in edits.removed}
    left |= {additions[name].node: additions[name].branch for name in edits.shortcuts_removed}
    if not left.keys() <= set(nodes):
        return None
    operands = [(nodes.index(name), operand) for name, operand in left.items()]
    told: dict[str, Any] = {"name": base.name, "operands": operands}
    if base.source == "timm":
        return {"library": "timm", **told, "arguments": arguments_of(network)}
    if base.source == "torchvision" and base.input_shape[0] == 3:
        sizes = {
            argument: base.input_shape[1:] if axes == 2 else base.input_shape[1]
            for prefix, (argument, axes) in SIZED.items()
            if base.name.startswith(prefix)
        }
        arguments = {**dict(base.arguments), **sizes}
        return {"library": "torchvision", **told, "arguments": arguments}
    return None


def _loads(checkpoint: Checkpoint, path: Path, how: Mapping[str, Any]) -> bool:
    """Whether the loader gets the same logits from the file."""
    sidecar = path.with_name(f"{path.name}.config.json")
    write_text(sidecar, json.dumps({"construct": how}))
    images = torch.randn(2, *checkpoint.network.base.input_shape)
    try:
        with torch.no_grad():
            logits: Tensor = loader.load(path)(images)  # type: ignore[no-untyped-call]
    except Exception:  # what torch.fx does not trace, or a library constructs otherwise
        return False
    return torch.allclose(logits, checkpoint.build()(images), rtol=1e-4, atol=1e-5)
