"""What the code of modules finds around it while it is traced."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import fx, nn

COMPILED = "_torchdynamo_orig_callable"  # attribute of what `torch.compile` has wrapped


def autocast() -> list[Any]:
    """The state of autocast on the kinds of devices that networks compute on."""
    kinds = ("cpu", "cuda")
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextlib.contextmanager
def attributes_kept(root: nn.Module, assigned: dict[str, str]) -> Iterator[None]:
    """Take back what a `forward` assigns to the attributes of modules, and tell of the buffers."""
    before = {module: (dict(vars(module)), dict(module._buffers)) for module in root.modules()}
    paths = {module: path for path, module in root.named_modules()}
    try:
        yield
    finally:
        for module, (attributes, buffers) in before.items():
            added = {key for key, value in vars(module).items() if isinstance(value, fx.Proxy)}
            for key in added - attributes.keys():
                delattr(module, key)
            vars(module).update(attributes)
            path = paths[module]
            for key, value in module._buffers.items():
                if isinstance(value, fx.Proxy):
                    assigned[f"{path}.{key}".lstrip(".")] = path
            module._buffers.update(buffers)


@contextlib.contextmanager
def lengths_of_batches(root: nn.Module) -> Iterator[None]:
    """Let `len(x)` in the code of modules be a value of the graph, which Python has as a number."""

    def length(value: Any) -> Any:
        return value.length() if isinstance(value, fx.Proxy) else len(value)

    homes = [vars(home) for home in _homes(root) if "len" not in vars(home)]
    for home in homes:
        home["len"] = length
    try:
        yield
    finally:
        for home in homes:
            del home["len"]


@contextlib.contextmanager
def functions_uncompiled(root: nn.Module) -> Iterator[None]:
    """Let functions that `torch.compile` has wrapped be those that the author has written."""
    owners = [*_homes(root), *_classes(root), *root.modules()]
    found = [
        (owner, name, value)
        for owner in owners
        for name, value in list(vars(owner).items())
        if isinstance(value, FunctionType) and COMPILED in vars(value)
    ]
    for owner, name, value in found:
        setattr(owner, name, vars(value)[COMPILED])
    try:
        yield
    finally:
        for owner, name, value in found:
            setattr(owner, name, value)


def _classes(root: nn.Module) -> list[type]:
    """The classes of the author's modules."""
    classes = dict.fromkeys(kind for module in root.modules() for kind in type(module).__mro__)
    names = ("torch", "builtins")
    return [kind for kind in classes if kind.__module__.partition(".")[0] not in names]


def _homes(root: nn.Module) -> list[ModuleType]:
    """The Python modules in which the classes of the author's modules are defined."""
    names = dict.fromkeys(kind.__module__ for kind in _classes(root))
    return [sys.modules[name] for name in names if name in sys.modules]
