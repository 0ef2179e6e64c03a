"""Taking a caller's module out of what wraps it."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from gatepruner.errors import ArchitectureError, listed

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Attributes of every built network. A submodule of such a name gets an underscore behind it.
RESERVED = {*dir(fx.GraphModule), "meta", "_graph"} - {*dir(nn.Module)}


def compiled(module: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` has wrapped; `None` for any other module."""
    return dict(module.named_children()).get("_orig_mod")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of `DataParallel`, `DistributedDataParallel`, `torch.compile` and such.

    Its submodules of reserved names are found, and their weights named, by other names.

    Raises:
        ArchitectureError: it is or has a TorchScript module.
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
    return _renamed(module)


def _renamed(module: nn.Module) -> nn.Module:
    """A module that shares everything with another one, but has no submodule of a reserved name.

    The author's code still finds those submodules by their own names.
    """
    children = dict(module.named_children())
    reserved = {name: f"{name}_" for name in RESERVED & children.keys()}
    if not reserved or not children.keys().isdisjoint(reserved.values()):
        return module
    renamed = copy.copy(module)
    renamed._modules = {reserved.get(name, name): part for name, part in module._modules.items()}
    vars(renamed).update({name: children[name] for name in reserved})
    return renamed
