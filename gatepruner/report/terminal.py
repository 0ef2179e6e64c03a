"""Text on stdout and progress on stderr: bars on a terminal, otherwise occasional lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from gatepruner.errors import visible
from gatepruner.learning.moments import GateMoment, Moment

EVERY = 15.0  # seconds between two lines of progress without a terminal


class Terminal:
    """Prints text to stdout and shows progress on stderr.

    Args:
        quiet: whether to show no progress.
        silent: whether to print no text, because stdout is for a JSON document.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        self.out = Console(highlight=False, soft_wrap=True, emoji=False, quiet=silent)
        self.err = Console(stderr=True, highlight=False, emoji=False, quiet=quiet, soft_wrap=True)
        self.progress: _Bar | _Lines | None = None
        self.said = set[str]()

    def once(self, text: str) -> None:
        """Say something unless it has been said like this before."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)

    def say(self, text: str) -> None:
        """Print lines of text to stdout without truncating or wrapping them."""
        self.rest()
        self.out.print("\n".join(map(visible, text.split("\n"))), markup=False)

    def stopping(self) -> None:
        """Say that a run will stop after the current step, because of a signal."""
        if not self.err.quiet:
            self.err.print("stopping after this step")

    def track(self, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """A wrapper of an iterable that shows progress."""

        def wrapped(items: Iterable[Any]) -> Iterator[Any]:
            total = len(items) if isinstance(items, Sized) else None
            try:
                for done, item in enumerate(items):
                    self.show(done, total, description)
                    yield item
            finally:
                self.rest()

        return wrapped

    def show(self, done: int, total: int | None, text: str) -> None:
        """Show how many of `total` steps are done."""
        if self.progress is None:
            self.progress = _Bar(self.err) if self.err.is_terminal else _Lines(self.err)
        self.progress.show(done, total, visible(text))

    def rest(self) -> None:
        """Remove the progress from the terminal."""
        if self.progress is not None:
            self.progress.close()
            self.progress = None

    @contextmanager
    def watching(self) -> Iterator[Callable[[GateMoment | Moment], None]]:
        """A watcher for runs; without a terminal, it also prints a line per epoch or removal."""
        try:
            yield self._watch
        finally:
            self.rest()

    def _watch(self, moment: GateMoment | Moment) -> None:
        self.show(moment.step, moment.steps, moment_text(moment))
        completed = completed_text(moment)
        if completed and not self.err.is_terminal:
            self.err.print(visible(completed), markup=False)


class _Bar:
    """Progress on a terminal: a bar with the total and the remaining time."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet,
        )
        self.progress.start()
        self.task = self.progress.add_task("", total=None)

    def show(self, done: int, total: int | None, text: str) -> None:
        self.progress.update(self.task, completed=done, total=total, description=text)

    def close(self) -> None:
        self.progress.stop()


class _Lines:
    """Progress without a terminal: occasional lines with the remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = self.last = time.monotonic()
        self.first: int | None = None  # steps done at the start, which differ in a resumed run

    def show(self, done: int, total: int | None, text: str) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if now - self.last < EVERY:
            return
        self.last, steps = now, done - self.first
        remaining = ""
        if total and steps:
            seconds = (now - self.start) / steps * (total - done)
            remaining = f" of {total:,}, {duration(seconds)} left"
        self.console.print(f"{text}: {done:,}{remaining}", markup=False)

    def close(self) -> None:
        pass


def duration(seconds: float) -> str:
    """A time as text: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def moment_text(moment: GateMoment | Moment) -> str:
    """The progress of a run in one line."""
    if isinstance(moment, GateMoment):
        return f"learning gates, {moment.gone} blocks removed  loss {moment.loss:.4f}"
    shares = {
        "accuracy": moment.accuracy,
        "held out": moment.validation,
        "agreement": moment.agreement,
    }
    parts = [f"epoch {moment.epoch}", f"loss {moment.loss:.4f}"]
    parts += [f"{name} {100 * share:.2f} %" for name, share in shares.items() if share is not None]
    parts += [] if moment.gate is None else [f"mean gate {moment.gate:.3f}"]
    return "  ".join(parts)


def completed_text(moment: GateMoment | Moment) -> str:
    """The epoch or removal that the moment completes; empty if it completes none."""
    if isinstance(moment, Moment):
        return moment_text(moment) if moment.ends_epoch else ""
    if moment.block is None:
        return ""
    return f"{moment.gone} of {moment.blocks}: {moment.block}, loss {moment.loss:.4f}"
