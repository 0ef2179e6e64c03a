"""Taking a caller's module out of what wraps it."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from gatepruner.errors import ArchitectureError, listed

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Attributes of every built network, which its submodules cannot have for names.
RESERVED = {*dir(fx.GraphModule), "meta", "_graph"} - {*dir(nn.Module)}


def compiled(module: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` has wrapped; `None` for any other module."""
    return dict(module.named_children()).get("_orig_mod")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of `DataParallel`, `DistributedDataParallel`, `torch.compile` and such.

    Raises:
        ArchitectureError: it is or has a TorchScript module, or a submodule with a reserved name.
    """
    while True:
        if isinstance(module, WRAPPERS):
            module = module.module
        elif (inner := compiled(module)) is not None:
            module = inner
        else:
            break
    name = type(module).__name__
    scripted = [
        path or name
        for path, each in module.named_modules()
        if isinstance(each, torch.jit.ScriptModule)
    ]
    if scripted:
        raise ArchitectureError(
            f"{listed(scripted[:1])} is a TorchScript module, whose code cannot be traced: pass "
            "the nn.Module that it was made from"
        )
    reserved = sorted(RESERVED & dict(module.named_children()).keys())
    if reserved:
        raise ArchitectureError(
            f"{name} has a submodule named {listed(reserved)}, which torch.fx reserves: "
            "rename it in the module and in the keys of its weights"
        )
    return module
