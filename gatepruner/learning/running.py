"""A run under way: interrupted at any moment, it can be gone on with, and nothing is lost.

All that is random in a step is drawn from the seed and the number of that step, so a run that
was interrupted and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gatepruner.errors import TrainingError
from gatepruner.files.storage import load_state, save_state
from gatepruner.images.images import Images

SAVE_EVERY = 60.0  # seconds between two states on the disk
Told = TypeVar("Told", covariant=True)


class Run(Protocol[Told]):
    """What `carry_out` asks of a run."""

    def identity(self) -> dict[str, Any]:
        """What has to be the same for the run to be resumed."""

    def steps(self) -> Iterator[Told]:
        """Take the steps that are left; yields where the run is, now and then."""

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values."""

    def sound(self) -> bool:
        """Whether the run can be gone on from where it is."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot of the same run."""


def carry_out(
    run: Run[Told],
    *,
    device: torch.device,
    state: str | Path | None,
    resume: bool,
    watch: Callable[[Told], None],
) -> None:
    """Take all steps of a run, keeping its state on the disk.

    Args:
        run: what to carry out; it is changed.
        device: whose random numbers to leave as they were.
        state: file to keep the run's state in; it is also written when the run is interrupted
            or fails, if it can be gone on from.
        resume: whether to go on from that state.
        watch: called with what `run.steps` yields.

    Raises:
        TrainingError: there is no such run to resume, or the run failed.
    """
    kept = Path(state) if state is not None else None
    if resume:
        _restore(run, kept)
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for moment in run.steps():
                watch(moment)
                due = time.monotonic() - saved > SAVE_EVERY
                if kept is not None and due and run.sound():
                    _save(run, kept)
                    saved = time.monotonic()
        except (KeyboardInterrupt, TrainingError):
            if kept is not None and run.sound():
                _save(run, kept)
            raise
    if kept is not None:
        _save(run, kept)


def _save(run: Run[Told], path: Path) -> None:
    save_state({"identity": run.identity(), **run.snapshot()}, path)


def _restore(run: Run[Told], path: Path | None) -> None:
    if path is None or not path.is_file():
        raise TrainingError(f"there is no run to resume: {path} is not there")
    snapshot, ours = load_state(path), run.identity()
    other = [key for key, value in ours.items() if snapshot["identity"].get(key) != value]
    if other:
        raise TrainingError(
            f"{path} is of another run, its {' and '.join(other)} differ: give the options "
            "of that run, or leave out --resume to begin anew"
        )
    run.restore(snapshot)


@contextlib.contextmanager
def whole_step() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a step: a state of half a step could not be gone on from."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def shuffled(data: Images, size: int, seed: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of every step after `done` ones, epoch after epoch, for ever.

    Each epoch has an order of its own; what does not fill a batch at its end is left out.
    """
    each = len(data) // size
    while True:
        epoch, first = divmod(done, each)
        order = torch.Generator().manual_seed(mixed(seed, epoch))
        part = torch.randperm(len(data), generator=order)[first * size : each * size]
        yield from data.batches(part, size)
        done = (epoch + 1) * each


def mixed(seed: int, index: int) -> int:
    """A seed for every index (numbers below 0 too), far from those of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63
