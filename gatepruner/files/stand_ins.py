"""What stands for the classes, functions and objects that a pickle names.

Nothing is imported: a class is its name, and an object of an unknown one is its data. The few
functions that files of weights call are here, too, with arguments of known types.
"""

from __future__ import annotations

import _compat_pickle
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

LONGEST_NAME = 1000  # letters of the name of a class or function
# Python does not mix these hashes: of larger numbers, and of several, many could have one hash.
LARGEST_KEY, LARGEST_IN_TUPLE = 2**61 - 2, 2**16
# Whatever names these was made to run code. Nothing would run, but no checkpoint needs them.
RUNNING = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "socket", "shutil", "ctypes"),
        *("importlib", "code", "pdb", "timeit", "webbrowser", "builtins.eval", "builtins.exec"),
        *("builtins.compile", "builtins.open", "builtins.input", "builtins.breakpoint"),
        "builtins.__import__",
    )
)


@dataclass(frozen=True, slots=True)
class Name:
    """The full name of a class or function, in place of the object."""

    full: str

    def __post_init__(self) -> None:
        if len(self.full) > LONGEST_NAME:
            raise pickle.UnpicklingError(f"a name of more than {LONGEST_NAME:,} letters")


@dataclass(slots=True, eq=False)
class StandIn:
    """An object of a class that is not known: its data without its behaviour.

    Attributes:
        name: full name of the class or function that would have made it.
        arguments: what it was made from.
        state: its state, usually a dictionary of its attributes.
        entries: what it holds as a dictionary.
        elements: what it holds as a list.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


def key_of(value: Any) -> Any:
    """A key of a dictionary: one whose hash takes no time and calls nothing."""
    if type(value) is tuple and len(value) <= 16:
        known = all(_is_key(part, LARGEST_IN_TUPLE) for part in value)
    else:
        known = type(value) is float or _is_key(value, LARGEST_KEY)
    if not known:
        raise pickle.UnpicklingError(f"a key of the type {type(value).__name__}, or too large")
    return value


def _is_key(value: Any, largest: int) -> bool:
    if type(value) is int:
        return abs(value) <= largest
    return value is None or type(value) in (str, bytes, bool, Name, StandIn)


def filled(pairs: Any = None) -> OrderedDict[Any, Any]:
    """The dictionary that `OrderedDict(pairs)` is."""
    if not isinstance(pairs, list | None):
        raise pickle.UnpicklingError("a dictionary of what is no list")
    return OrderedDict((key_of(key), value) for key, value in pairs or ())


def members(values: Any = None) -> set[Any]:
    """The set that `set(values)` is."""
    if not isinstance(values, list | None):
        raise pickle.UnpicklingError("a set of what is no list")
    return set(map(key_of, values or ()))


def encoded(*arguments: Any) -> Any:
    """The bytes that a pickle of Python 2 spells as text, or else a stand-in."""
    match arguments:
        case str(text), ("latin1" | "latin-1"):
            return text.encode("latin1")
    return StandIn("_codecs.encode", arguments)


def within(*arguments: Any) -> Any:
    """What `getattr` gives: the name of a class within another, or else a stand-in."""
    match arguments:
        case Name(outer), str(name) if name.isidentifier():
            return Name(f"{outer}.{name}")
    return StandIn("builtins.getattr", arguments)


def full_name(module: str, name: str) -> str:
    """`module.name`, with the names of Python 3."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def runs(name: str) -> bool:
    """Whether a name has no use in a file but to run code."""
    return name in RUNNING or name.partition(".")[0] in RUNNING
