"""What a long run keeps beside its output, so that nothing of it is lost."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatepruner.cli.options import Resumable
from gatepruner.errors import CheckpointError

if TYPE_CHECKING:
    from gatepruner.learning.moments import Moment


@dataclass(frozen=True)
class Kept:
    """The files of a run that is kept beside its output.

    Attributes:
        state: the run, from which it can be resumed.
        history: a line for every epoch.
        resume: whether there is a state to go on from, as was asked.
    """

    state: Path
    history: Path
    resume: bool

    @classmethod
    def beside(cls, output: Path, call: Resumable, *, epochs: bool = True) -> Kept:
        """The files beside an output, if nothing is lost by writing them."""
        from gatepruner.files.storage import refuse_existing, refuse_name

        state = output.with_name(f"{output.name}.state")
        history = output.with_name(f"{output.name}.history.jsonl")
        refuse_existing(output, force=call.force)
        refuse_name(output)
        if state.exists() and not (call.resume or call.force):
            raise CheckpointError(
                f"{state} is the state of an interrupted run: continue it, or replace it",
                resume=True,
                force=True,
            )
        resume = call.resume and state.exists()
        if epochs and not resume:
            refuse_existing(history, force=call.force)
        return cls(state, history, resume)


class StoppedError(Exception):
    """A command that a signal stopped.

    Args:
        message: what is kept, and how to continue.
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.code = 128 + signal


@contextlib.contextmanager
def stopping(state: Path | None = None) -> Iterator[None]:
    """Say how to continue when a run is interrupted.

    Raises:
        StoppedError: it was.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = state is not None and state.exists()
        how = f"; {state} is kept: continue with the same command and --resume" if kept else ""
        number = stop.args[0] if stop.args else signal.SIGINT
        raise StoppedError(f"interrupted{how}", int(number)) from None


def recording(
    history: Path, watch: Callable[[Moment], None], *, anew: bool
) -> Callable[[Moment], None]:
    """A watcher that also writes a line for every epoch; a resumed run keeps the earlier ones."""
    earlier = [] if anew else _epochs(history)

    def record(moment: Moment) -> None:
        watch(moment)
        if moment.ends_epoch:
            earlier[:] = [one for one in earlier if one["epoch"] < moment.epoch]
            earlier.append(moment.record())
            write_epochs(earlier, history)

    return record


def _epochs(history: Path) -> list[dict[str, Any]]:
    """What a history holds; a line that was cut while it was written is left out."""
    epochs = []
    for line in history.read_text().splitlines() if history.exists() else []:
        with contextlib.suppress(ValueError):
            epochs.append(json.loads(line))
    return epochs


def write_epochs(epochs: Iterable[Mapping[str, Any]], history: Path) -> None:
    """Write a history, whole or not at all."""
    partial = history.with_name(f".{history.name}.part")
    partial.write_text("".join(f"{json.dumps(one)}\n" for one in epochs))
    partial.replace(history)
