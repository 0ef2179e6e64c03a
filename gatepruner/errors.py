"""What gatepruner refuses, and why: one base class, one subclass for each kind of thing.

Every message names the thing, what was found, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class GatePrunerError(Exception):
    """Base of every error that gatepruner raises for an input it refuses.

    Args:
        message: the thing, what was found and what was expected.
        arguments: what to pass instead, any one of them, as in `resize=224`; the command line
            tells them as its options.
    """

    def __init__(self, message: str, **arguments: Any) -> None:
        super().__init__(message)
        self.arguments = arguments

    def __str__(self) -> str:
        return self.told(lambda name, value: f"{name}={value!r}")

    def told(self, spell: Callable[[str, Any], str]) -> str:
        """The message, and what to pass in the words of the library or of the command line."""
        passed = " or ".join(spell(name, value) for name, value in self.arguments.items())
        return f"{self.args[0]}; pass {passed}" if passed else str(self.args[0])


class ArchitectureError(GatePrunerError):
    """An architecture that is not known, cannot be traced or has no residual addition."""


class CheckpointError(GatePrunerError):
    """A file that cannot be read or written, or weights that do not fit their network."""


class PlanError(GatePrunerError):
    """A removal that the network cannot carry out."""


class DataError(GatePrunerError):
    """Images that are missing or do not fit the network."""


class DeviceError(GatePrunerError):
    """A device that this machine does not have."""


class TrainingError(GatePrunerError):
    """A training run that cannot begin, go on or be resumed."""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names as one line of text: all of them, or the first and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nearest(name: str, known: Sequence[str]) -> str:
    """`" (near: a, b)"` for the known names closest to `name`, or nothing if none is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (near: {', '.join(close)})" if close else ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`["steps was 50, is now 60"]` for every value that has changed, however deep it is."""
    changed = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            changed += differences(old, value)
        elif old != value:
            changed.append(f"{key} was {old}, is now {value}")
    return changed
