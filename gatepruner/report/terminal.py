"""What is said on stdout, and progress on stderr: bars on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from gatepruner.learning.moments import GateMoment, Moment

EVERY = 15.0  # seconds between two lines of progress where there is no terminal


class Terminal:
    """Says things on stdout, shows progress on stderr, or is quiet.

    Args:
        quiet: whether to show no progress.
        silent: whether stdout is for a JSON document alone.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        self.out = Console(highlight=False, soft_wrap=True, emoji=False, quiet=silent)
        self.err = Console(stderr=True, highlight=False, emoji=False, quiet=quiet, soft_wrap=True)

    def say(self, what: str) -> None:
        """Print to stdout; nothing is cut or wrapped."""
        self.out.print(what, markup=False)

    def stopping(self) -> None:
        """Say that a signal has come: a run stops after the step under way."""
        if not self.err.quiet:
            self.err.print("stopping after this step")

    def track(self, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """A wrapper for an iterable that shows how far it is."""

        def wrapped(items: Iterable[Any]) -> Iterator[Any]:
            total = len(items) if isinstance(items, Sized) else None
            with self.progress(description) as show:
                for done, item in enumerate(items):
                    show(done, total, description)
                    yield item
                show(total or 0, total, description)

        return wrapped

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[[int, int | None, str], None]]:
        """A function that shows how many of how many steps are done."""
        if not self.err.is_terminal:
            yield _Lines(self.err)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self.err, transient=True, disable=self.err.quiet
        ) as progress:
            task = progress.add_task(description, total=None)

            def show(done: int, total: int | None, text: str) -> None:
                progress.update(task, completed=done, total=total, description=text)

            yield show

    @contextmanager
    def training(self) -> Iterator[Callable[[Moment], None]]:
        """A watcher for a training run: a bar on a terminal, else a line for every epoch too."""
        with self.progress("training") as show:

            def watch(moment: Moment) -> None:
                text = moment_text(moment)
                show(moment.step, moment.steps, text)
                if moment.ends_epoch and not self.err.is_terminal:
                    self.err.print(text)

            yield watch

    @contextmanager
    def gating(self) -> Iterator[Callable[[GateMoment], None]]:
        """A watcher for the learning of gates: a bar, else a line for every removed block too."""
        with self.progress("learning gates") as show:

            def watch(moment: GateMoment) -> None:
                text = f"learning gates, {moment.gone} blocks removed  loss {moment.loss:.4f}"
                show(moment.step, moment.steps, text)
                if moment.block is not None and not self.err.is_terminal:
                    number = f"{moment.gone} of {moment.blocks}"
                    self.err.print(f"{number}: {moment.block}, loss {moment.loss:.4f}")

            yield watch


class _Lines:
    """Progress where there is no terminal: a line now and then, with the time that is left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = self.told = time.monotonic()
        self.first: int | None = None  # steps done at first: those of a resumed run take no time

    def __call__(self, done: int, total: int | None, text: str) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if now - self.told < EVERY:
            return
        self.told, made = now, done - self.first
        left = ""
        if total and made:
            left = f" of {total:,}, {duration((now - self.began) / made * (total - done))} left"
        self.console.print(f"{text}: {done:,}{left}", markup=False)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def moment_text(moment: Moment) -> str:
    """Loss, accuracy and mean gate of the epoch so far."""
    gate = "" if moment.gate is None else f"  mean gate {moment.gate:.3f}"
    held = "" if moment.validation is None else f"  held out {100 * moment.validation:.2f} %"
    return (
        f"epoch {moment.epoch}  loss {moment.loss:.4f}  "
        f"accuracy {100 * moment.accuracy:.2f} %{gate}{held}"
    )
