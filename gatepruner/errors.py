"""Errors: one base class, and one subclass for each kind of input that is refused.

A message names the thing, what was found, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LONGEST = 4000  # characters of a message
# Control, format, surrogate, private and unassigned ones, line and paragraph separators.
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


class GatePrunerError(Exception):
    """Base class of all errors that gatepruner raises on invalid input.

    Args:
        message: the thing, what was found and what was expected.
        arguments: arguments any of which would solve the problem, such as `resize=224`; the
            command line shows them as options.
    """

    def __init__(self, message: str, **arguments: Any) -> None:
        super().__init__(message)
        self.arguments = arguments

    def __str__(self) -> str:
        return self.told(lambda name, value: f"{name}={value!r}")

    def told(self, spell: Callable[[str, Any], str]) -> str:
        """The message with the arguments to pass, each written by `spell(name, value)`."""
        passed = " or ".join(spell(name, value) for name, value in self.arguments.items())
        message = visible(str(self.args[0]))
        if len(message) > LONGEST:  # a file may have names of any length
            message = f"{message[:LONGEST]} …"
        return f"{message}; pass {visible(passed)}" if passed else message


class ArchitectureError(GatePrunerError):
    """The architecture is unknown, cannot be traced or has no residual addition."""


class CheckpointError(GatePrunerError):
    """A file cannot be read or written, or weights do not fit their network."""


class PlanError(GatePrunerError):
    """The network does not allow a removal."""


class DataError(GatePrunerError):
    """Images are missing or do not fit the network."""


class DeviceError(GatePrunerError):
    """This machine does not have the device, or the device cannot do what is asked."""


class EngineError(GatePrunerError):
    """An engine or a format is not installed, or cannot run the network."""


class OutOfMemoryError(GatePrunerError):
    """A device has not enough memory for a step of learning."""


class ProcessError(GatePrunerError):
    """The processes of one run do not work together."""


class TrainingError(GatePrunerError):
    """A training run cannot start, continue or be resumed."""


def visible(text: str) -> str:
    """A text from outside in one line that does nothing to a terminal.

    Control characters, marks of direction, line breaks, lone surrogates and what is no letter yet
    are spelled as in Python: `\\x1b` for an escape.
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in UNSEEN
        else letter
        for letter in text
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's or of PyTorch's, which has no kind for all devices, says so."""
    said = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in said)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else its kind."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names joined by commas; beyond `limit`, the number of those left out."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nearest(name: str, known: Sequence[str]) -> str:
    """`" (did you mean a or b?)"` with the known names closest to `name`; empty if none is."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`["steps was 50, is now 60"]` for every changed value, nested ones included."""
    changed = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            changed += differences(old, value)
        elif old != value:
            changed.append(f"{key} was {old}, is now {value}")
    return changed
