"""What a long run keeps beside its output, so that nothing of it is lost."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gatepruner.errors import CheckpointError

if TYPE_CHECKING:
    from gatepruner.learning.moments import Moment


def kept_beside(output: Path, *, resume: bool, force: bool) -> tuple[Path, Path]:
    """Where the state and the history of a run are kept, if nothing is lost by it."""
    from gatepruner.files.storage import refuse_existing

    state = state_beside(output, resume=resume, force=force)
    history = output.with_name(f"{output.name}.history.jsonl")
    if not resume:
        refuse_existing(history, force=force)
    return state, history


def state_beside(output: Path, *, resume: bool, force: bool) -> Path:
    """Where the state of a run is kept, if nothing is lost by it."""
    from gatepruner.files.storage import refuse_existing, refuse_name

    state = output.with_name(f"{output.name}.state")
    refuse_existing(output, force=force)
    refuse_name(output)
    if state.exists() and not resume and not force:
        raise CheckpointError(
            f"{state} is the state of a run that was interrupted: --resume to go on with it, or "
            "--force to begin anew"
        )
    return state


@contextlib.contextmanager
def stopping(state: Path) -> Iterator[None]:
    """Say how to go on when a run is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"; {state} is kept: go on with the same command and --resume"
        typer.echo(f"interrupted{kept if state.exists() else ''}", err=True)
        sys.exit(130)


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
    found = []
    for line in history.read_text().splitlines() if history.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def write_epochs(epochs: Iterable[Mapping[str, Any]], history: Path) -> None:
    """Write a history, whole or not at all."""
    partial = history.with_name(f".{history.name}.part")
    partial.write_text("".join(f"{json.dumps(one)}\n" for one in epochs))
    partial.replace(history)
