"""Running a learner until it has finished or a signal arrives, with its state on the disk.

A run can be interrupted or killed at any time; resumed, it ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gatepruner import processes
from gatepruner.documents import checked
from gatepruner.errors import TrainingError, differences, first_line
from gatepruner.files.locks import held
from gatepruner.files.storage import load_state, save_state
from gatepruner.learning.accumulation import room_for
from gatepruner.learning.learner import Learner, Shown
from gatepruner.signals import handling

SAVE_EVERY = 60.0  # seconds between two saved states
SHOW_EVERY = 0.5  # seconds between two shown moments


def carry_out(
    learner: Learner[Shown],
    *,
    state: str | Path | None,
    resume: bool,
    watch: Callable[[Shown], None],
    on_stop: Callable[[], None],
) -> None:
    """Take all steps of a run and keep its state on the disk.

    Several processes take every step together, and the first one keeps the state.

    When a signal that asks to stop arrives, the run finishes its step, since half a step cannot be
    resumed, writes its state and raises `KeyboardInterrupt` with the number of the signal.

    Args:
        learner: takes the steps.
        state: file for the run's state, written at the start, after every epoch or removal, once a
            minute, and when the run is interrupted or fails.
        resume: whether to continue from that state.
        watch: called with a moment after every epoch or removal, and regularly in between.
        on_stop: called as soon as a signal arrives.

    Raises:
        CheckpointError: another run keeps its state in this file.
        TrainingError: there is no such run to resume, or the run failed.
        OutOfMemoryError: a step does not fit into memory; the state is that of an earlier step.
        ProcessError: the processes do different things, or one of them has ended.
    """
    path = Path(state) if state is not None else None
    cuda = [learner.device] if learner.device.type == "cuda" else []
    processes.meet("learning", learner.premises)
    with contextlib.ExitStack() as stack:
        processes.agreed(lambda: stack.enter_context(held(path)))
        if resume:
            _restore(learner, path)
        else:
            _save(learner, path)
        with torch.random.fork_rng(devices=cuda), _signals(on_stop) as signals:
            try:
                _take_steps(learner, path, watch, signals)
            except (KeyboardInterrupt, TrainingError):
                _save(learner, path)
                raise
            finally:
                learner.close()


def _take_steps(
    learner: Learner[Shown], path: Path | None, watch: Callable[[Shown], None], signals: list[int]
) -> None:
    shown = saved = time.monotonic()
    at_once = max(part.stop - part.start for part in learner.parts)
    while not learner.finished:
        with processes.explained(), room_for(at_once, learner.data.shape, learner.device):
            completed = moment = learner.step()
        now = time.monotonic()
        due = int(moment is None and now - shown > SHOW_EVERY)
        if processes.greatest(due):  # in all of them, since it may raise an error
            moment = learner.moment()
        if moment is not None:
            watch(moment)
            shown = now
        if completed is not None or now - saved > SAVE_EVERY:
            _save(learner, path)
            saved = now
        stop = processes.greatest(signals[0] if signals else 0)
        if stop:
            raise KeyboardInterrupt(stop)


@contextlib.contextmanager
def _signals(on_stop: Callable[[], None]) -> Iterator[list[int]]:
    """Collect the numbers of arriving signals instead of letting them stop the process."""
    arrived: list[int] = []

    def handle(number: int, frame: object) -> None:
        arrived.append(number)
        if len(arrived) == 1:
            on_stop()

    with handling(handle):
        yield arrived


def _save(learner: Learner[Any], path: Path | None) -> None:
    """Write the state of a run, unless it has become useless."""
    if path is None:
        return
    snapshot = learner.snapshot()  # in all processes, since the first may measure costs for it
    if processes.rank() == 0 and learner.sound():
        save_state({"identity": learner.identity(), **snapshot}, path)


def _restore(learner: Learner[Any], path: Path | None) -> None:
    snapshot = processes.agreed(lambda: _snapshot(learner, path))
    try:
        learner.restore(snapshot)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}): start a new run"
        ) from None


def _snapshot(learner: Learner[Any], path: Path | None) -> dict[str, Any]:
    """What a file holds, if it is the state of this run."""
    if path is None or not path.is_file():
        reason = f"{path} does not exist" if path else "no state file was given"
        raise TrainingError(f"there is no run to resume: {reason}")
    snapshot = load_state(path)
    changed = differences(snapshot["identity"], learner.identity())
    if changed:
        raise TrainingError(
            f"{path} is the state of another run ({'; '.join(changed)}): resume it with the "
            "options of that run, or start a new one"
        )
    checked(snapshot, learner.state, str(path), TrainingError)
    return snapshot
