"""Exporting pruned networks to timm's own classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gatepruner.errors import PlanError
from gatepruner.files.stages import OTHERWISE, moved_up, stages_left, state_of
from gatepruner.files.storage import read_file, write_tensors
from gatepruner.networks.base import blank
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

# The argument that says how many blocks a class has, and whether it does so for every stage.
DEPTHS: dict[str, tuple[str, bool]] = {
    "ResNet": ("layers", True),
    "ConvNeXt": ("depths", True),
    "VisionTransformer": ("depth", False),
    "VisionTransformerDistilled": ("depth", False),
    "Eva": ("depth", False),
    "MlpMixer": ("num_blocks", False),
}


def check(network: Network) -> None:
    """Refuse a network of which timm's class cannot hold any smaller one that pruning makes.

    Raises:
        PlanError: it is not timm's, or its class has no argument for the number of its blocks.
    """
    if network.base.source != "timm":
        raise PlanError(f"cannot export {network} to timm: it is not timm's; {OTHERWISE}")
    kind = type(blank(network.base)).__name__
    if kind not in DEPTHS:
        raise PlanError(
            f"cannot export {network} to timm: its class {kind} has no argument for the number of "
            f"its blocks; {OTHERWISE}"
        )


def write(
    checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]
) -> tuple[Callable[[str], str], Mapping[str, Any]]:
    """Write the state dict that timm's class loads strictly.

    Raises:
        PlanError: a block lacks a part, or a stage has no block left.
    """
    arguments, moved = _closed_up(checkpoint.network)
    name = checkpoint.network.base.name
    write_tensors(state_of(checkpoint, moved), path, force=True)
    return lambda file: _recipe(name, arguments, file), {"arguments": arguments}


def read(checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The file in the network that timm constructs."""
    import timm

    arguments, _ = _closed_up(checkpoint.network)
    module: nn.Module = timm.create_model(checkpoint.network.base.name, **arguments)
    module.load_state_dict(read_file(path)[0], strict=True)
    return module.eval()


def _closed_up(network: Network) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of the constructor, and the new path of every block's module."""
    stages = stages_left(network, "timm")
    argument, staged = DEPTHS[type(blank(network.base)).__name__]
    counts = [len(paths) for paths in stages.values()]
    arguments = {**arguments_of(network), argument: counts if staged else sum(counts)}
    return arguments, moved_up(stages)


def arguments_of(network: Network) -> dict[str, Any]:
    """What timm is told besides the number of blocks."""
    import timm

    base = network.base
    channels, *size = base.input_shape
    arguments = dict(base.arguments) | ({} if channels == 3 else {"in_chans": channels})
    usual = timm.get_pretrained_cfg(base.name)
    sized = "img_size" in inspect.signature(type(blank(base)).__init__).parameters
    if sized and (usual is None or list(usual.input_size[1:]) != size):
        arguments["img_size"] = tuple(size)
    return arguments


def _recipe(name: str, arguments: Mapping[str, Any], file: str) -> str:
    """Python code that loads the file with timm alone."""
    told = "".join(f", {key}={value!r}" for key, value in arguments.items())
    read, loaded = "import torch", f"torch.load({file!r}, weights_only=True)"
    if file.endswith(".safetensors"):
        read, loaded = "from safetensors.torch import load_file", f"load_file({file!r})"
    return (
        f"import timm\n{read}\nmodel = timm.create_model({name!r}{told})\n"
        f"model.load_state_dict({loaded})"
    )
