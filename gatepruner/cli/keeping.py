"""What a long run keeps beside its output, so that nothing of it is lost."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from gatepruner.cli.configuration import configuration_path
from gatepruner.cli.options import Resumable
from gatepruner.cli.several import writes
from gatepruner.documents import checked, parsed, text_of
from gatepruner.errors import CheckpointError
from gatepruner.files.writing import refuse_existing, refuse_name, write_text
from gatepruner.processes import agreed

if TYPE_CHECKING:
    from gatepruner.learning.moments import Moment


LARGEST = 2**26  # bytes of a history; a line has about 300


class Epoch(TypedDict):
    """A line of a history, which says more beside."""

    epoch: int


@dataclass(frozen=True)
class Kept:
    """The files of a run that is kept beside its output.

    Attributes:
        state: the run, from which it can be resumed.
        history: a line for every epoch.
        resume: whether there is a state to go on from, as was asked.
        force: whether outputs that exist are replaced.
    """

    state: Path
    history: Path
    resume: bool
    force: bool

    @classmethod
    def beside(cls, output: Path, call: Resumable, *, epochs: bool = True) -> Kept:
        """The files beside an output, if nothing is lost by writing them.

        Of several processes the first one looks, and keeps other runs away.
        """
        return agreed(lambda: cls._beside(output, call, epochs=epochs))

    @classmethod
    def _beside(cls, output: Path, call: Resumable, *, epochs: bool) -> Kept:
        state = output.with_name(f"{output.name}.state")
        history = output.with_name(f"{output.name}.history.jsonl")
        resume = call.resume and state.is_file()
        force = call.force or resume  # a run may have been killed while it wrote its outputs
        refuse_existing(output, force=force)
        refuse_name(output)
        if state.exists() and not (resume or force):
            raise CheckpointError(
                f"{state} is the state of an interrupted run: continue it, or replace it",
                resume=True,
                force=True,
            )
        for path in (*([history] if epochs else []), configuration_path(output)):
            refuse_existing(path, force=force)
        call.hold(output)
        return cls(state, history, resume, force)


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
        if moment.ends_epoch and writes():
            earlier[:] = [one for one in earlier if one["epoch"] < moment.epoch]
            earlier.append(moment.record())
            write_epochs(earlier, history)

    return record


def _epochs(history: Path) -> list[dict[str, Any]]:
    """What a history holds; a line that is damaged is left out."""
    epochs = []
    for line in text_of(history, most=LARGEST).splitlines() if history.exists() else []:
        with contextlib.suppress(CheckpointError):
            epoch = parsed(line, "a line")
            checked(epoch, Epoch, "a line")
            epochs.append(epoch)
    return epochs


def write_epochs(epochs: Iterable[Mapping[str, Any]], history: Path) -> None:
    """Write a history, whole or not at all."""
    write_text(history, "".join(f"{json.dumps(one)}\n" for one in epochs))
