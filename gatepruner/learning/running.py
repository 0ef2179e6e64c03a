"""Running: steps taken until all are done or a signal comes, with the state kept on the disk.

A run can be interrupted or killed at any moment and resumed; it ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gatepruner.errors import TrainingError
from gatepruner.files.storage import load_state, save_state
from gatepruner.learning.learner import Learner, Shown

SAVE_EVERY = 60.0  # seconds between two states on the disk
SHOW_EVERY = 0.5  # seconds between two moments that are shown


def carry_out(
    learner: Learner[Shown],
    *,
    state: str | Path | None,
    resume: bool,
    watch: Callable[[Shown], None],
    on_stop: Callable[[], None],
) -> None:
    """Take all steps of a run, keeping its state on the disk.

    SIGINT and SIGTERM wait for the end of the step under way, since half a step cannot be
    resumed; then the state is written, and `KeyboardInterrupt` raised with the signal's number.

    Args:
        learner: what takes the steps.
        state: file to keep the run's state in: from the very beginning, at every epoch or removal,
            once a minute, and when the run is interrupted or fails.
        resume: whether to continue from that state.
        watch: called with where the run is, at every epoch or removal and now and then.
        on_stop: called as soon as a signal has come.

    Raises:
        TrainingError: there is no such run to resume, or the run failed.
    """
    path = Path(state) if state is not None else None
    if resume:
        _restore(learner, path)
    else:
        _save(learner, path)
    cuda = [learner.device] if learner.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _signals(on_stop) as came:
        try:
            _take_steps(learner, path, watch, came)
        except (KeyboardInterrupt, TrainingError):
            _save(learner, path)
            raise


def _take_steps(
    learner: Learner[Shown], path: Path | None, watch: Callable[[Shown], None], came: list[int]
) -> None:
    shown = saved = time.monotonic()
    while not learner.finished:
        completed = moment = learner.step()
        now = time.monotonic()
        if moment is None and now - shown > SHOW_EVERY:
            moment = learner.moment()
        if moment is not None:
            watch(moment)
            shown = now
        if completed is not None or now - saved > SAVE_EVERY:
            _save(learner, path)
            saved = now
        if came:
            raise KeyboardInterrupt(came[0])


@contextlib.contextmanager
def _signals(on_stop: Callable[[], None]) -> Iterator[list[int]]:
    """The signals that have come; while they are kept here, they stop nothing by themselves."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            on_stop()

    main = threading.current_thread() is threading.main_thread()  # no other gets signals
    kept = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in kept}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _save(learner: Learner[Any], path: Path | None) -> None:
    """Write the state of a run, if it can be resumed."""
    if path is not None and learner.sound():
        save_state({"identity": learner.identity(), **learner.snapshot()}, path)


def _restore(learner: Learner[Any], path: Path | None) -> None:
    if path is None or not path.is_file():
        missing = f"{path} does not exist" if path else "it was given no state file"
        raise TrainingError(f"there is no run to resume: {missing}")
    snapshot, ours = load_state(path), learner.identity()
    other = [key for key, value in ours.items() if snapshot["identity"].get(key) != value]
    if other:
        raise TrainingError(
            f"{path} is the state of another run (different {' and '.join(other)}): resume it "
            "with the options of that run, or start anew"
        )
    learner.restore(copy.deepcopy(snapshot))  # out of the file, which will be replaced
