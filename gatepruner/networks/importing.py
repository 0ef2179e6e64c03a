"""Importing a module of the caller's by its name, `FILE.py:CALLABLE` or `package.module:callable`.

A name is imported only if the caller gives it. The one that a checkpoint records is text, which
tells the caller what to give.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gatepruner.errors import ArchitectureError, listed, nearest
from gatepruner.networks.tracer import reason

EXPECTED = "FILE.py:CALLABLE"
RECORDED = re.compile(r"[\w./\\:+@][\w./\\:+@-]{0,250}:\w[\w.]{0,100}")  # no word for a shell


@dataclass(frozen=True)
class Brought:
    """What a caller brings for a network whose code is the caller's.

    Attributes:
        given: the module, or its name.
        leaves: classes, or names of classes, of its parts that tracing keeps whole.
    """

    given: nn.Module | str | None = None
    leaves: tuple[type[nn.Module] | str, ...] = ()

    @functools.cached_property
    def module(self) -> nn.Module | None:
        """The module; imported when it is first asked for."""
        return imported(self.given) if isinstance(self.given, str) else self.given

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint records: the name, if that was given."""
        return {"module": self.given} if isinstance(self.given, str) else {}


def recorded(notes: Mapping[str, Any]) -> str:
    """The name of a module in the notes of a checkpoint, or else the form of such names.

    It may come from anyone: what a shell might take for more than one word is left out.
    """
    name = notes.get("module")
    return name if isinstance(name, str) and RECORDED.fullmatch(name) else EXPECTED


def imported(name: str) -> nn.Module:
    """Import and build a module.

    The folder of the file and the current folder can be imported from meanwhile. What the code
    prints goes to stderr, and random numbers of the caller are left as they are.

    Args:
        name: `FILE.py:CALLABLE` or `package.module:callable`, where the callable is a class or a
            function that needs no arguments and returns a module; or a module.

    Raises:
        ArchitectureError: there is no such file, package or callable, it needs arguments, raises
            an error or returns something else.
    """
    place, _, attribute = name.rpartition(":")
    if not (place and attribute):
        raise _unreadable(name)
    unused = _unused_name(_path(place))  # before the file's folder is searched
    with _importable(place), torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
        source = _by_file(place, unused) if place.endswith(".py") else _by_package(place, name)
        value = _attribute(source, attribute, place)
        return value if isinstance(value, nn.Module) else _built(value, name)


def _unreadable(name: str) -> ArchitectureError:
    return ArchitectureError(
        f"cannot read the module {name!r}: expected {EXPECTED} or package.module:callable"
    )


@contextlib.contextmanager
def _importable(place: str) -> Iterator[None]:
    """Let the folder of a file and the current one be searched first, as Python itself does."""
    folders = [str(Path.cwd())]
    if place.endswith(".py"):
        folders.insert(0, str(_path(place).parent))
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(ValueError):  # the code may have changed the list
                sys.path.remove(folder)


def _path(place: str) -> Path:
    return Path(place).expanduser().resolve()


def _by_file(place: str, name: str) -> ModuleType:
    """The Python module of a file, executed under this name if it is not yet."""
    path = _path(place)
    if not path.is_file():
        names = sorted(file.name for file in path.parent.glob("*.py"))
        there = f"; the folder has {listed(names)}" if names else ""
        raise ArchitectureError(f"there is no file {place}{there}")
    for known in list(sys.modules.values()):
        if getattr(known, "__dict__", {}).get("__file__") == str(path):
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _run(functools.partial(spec.loader.exec_module, module), f"import {place}")
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _unused_name(path: Path) -> str:
    """The name of a file, if Python imports nothing else by it, or else a longer one."""
    name = path.stem
    if name.isidentifier() and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin == str(path):
            return name
    return f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _by_package(place: str, name: str) -> Any:
    """The Python module of this full name."""
    if not all(part.isidentifier() for part in place.split(".")):
        raise _unreadable(name)
    try:
        return _run(functools.partial(importlib.import_module, place), f"import {place}")
    except ArchitectureError as error:
        missing = getattr(error.__cause__, "name", None)
        if isinstance(error.__cause__, ModuleNotFoundError) and f"{place}.".startswith(
            f"{missing}."
        ):
            raise ArchitectureError(
                f"there is no Python module {missing}: expected {EXPECTED}, or a name that can be "
                "imported from the current folder"
            ) from None
        raise


def _run(code: Callable[[], Any], what: str) -> Any:
    """Run the caller's code; whatever it raises is told in one line."""
    try:
        return code()
    except (Exception, SystemExit) as error:  # it may raise anything
        raise ArchitectureError(
            f"cannot {what}: {type(error).__name__}: {reason(error)}{_hint(error, what)}"
        ) from error


def _hint(error: BaseException, what: str) -> str:
    """What to do about an error of the caller's code, if that is known."""
    if isinstance(error, ImportError) and "relative import" in str(error):
        path = Path(what.removeprefix("import ")).with_suffix("")
        inside = not path.is_absolute() and all(part.isidentifier() for part in path.parts)
        name = ".".join(path.parts) if inside and len(path.parts) > 1 else "package.module"
        return f"; name it as a part of its package, as in {name}:callable"
    if isinstance(error, SystemExit):
        return "; expected code that reads no command line and does not end the process"
    if "CUDA" in str(error) or "NVIDIA" in str(error):
        return "; expected code that builds the module on the CPU"
    return ""


def _attribute(source: ModuleType, path: str, place: str) -> Any:
    """What a Python module has under a name, which may have dots."""
    value: Any = source
    for name in path.split("."):
        if not hasattr(value, name):
            known = _callables(value)
            has = f"; it has {listed(known)}" if known else ""
            raise ArchitectureError(f"{place} has no {path}{nearest(path, known)}{has}")
        value = getattr(value, name)
    return value


def _callables(owner: Any) -> list[str]:
    """The public names of what an object itself defines and can be called."""
    home = getattr(owner, "__name__", "")
    return [
        name
        for name, value in vars(owner).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == home
    ]


def _built(value: Any, name: str) -> nn.Module:
    """The module that a class or a function returns."""
    if not callable(value):
        raise ArchitectureError(
            f"{name} is of the type {type(value).__name__}: expected a class or function that "
            "returns an nn.Module"
        )
    needed = _needed(value)
    if needed:
        short = name.rpartition(":")[2]
        raise ArchitectureError(
            f"{name} needs arguments ({listed(needed)}): write a function without arguments that "
            f"returns {short}(...), and name that"
        )
    module = _run(value, f"build {name}")
    if not isinstance(module, nn.Module):
        raise ArchitectureError(f"{name} returns a {type(module).__name__}: expected an nn.Module")
    return module


def _needed(function: Callable[..., Any]) -> list[str]:
    """The arguments without which a function cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of functions in C
        return []
    passing = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in passing]
