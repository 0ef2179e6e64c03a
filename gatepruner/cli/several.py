"""A command that torchrun has started several times: one process talks and writes for all."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import typer

from gatepruner import launching, processes
from gatepruner.signals import ignore


class _Nowhere(io.TextIOBase):
    """A stream that forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)


def hush() -> None:
    """Say nothing from now on."""
    sys.stdout = sys.stderr = _Nowhere()


def _speak() -> None:
    assert sys.__stdout__ is not None
    assert sys.__stderr__ is not None
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


@contextlib.contextmanager
def taking_part(*, shared: bool = True) -> Iterator[None]:
    """Share the work of a command with the other processes of the run, if there are any.

    Only the first process talks, unless another one fails before it: then that one does. Those that
    do not meet each tell why, and PyTorch's own accounts of it are left out.

    Args:
        shared: whether the processes share the work; otherwise the first one does all of it.
    """
    if not shared and not launching.first():
        raise typer.Exit
    run, several = None, shared and launching.several()
    if several:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        run = launching.begin() if shared else None
        yield
    except BaseException:
        if several:
            ignore()
            (_speak if run is None or run.first_to_fail() else hush)()
        raise
    if run is not None:
        launching.end()


def writes() -> bool:
    """Whether this process writes the outputs of the command."""
    return processes.rank() == 0
