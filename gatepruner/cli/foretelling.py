"""`--dry-run`: what a command would do, what it would write, and about how long it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gatepruner.cli.configuration import configuration_path
from gatepruner.cli.options import Data, Writing

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint

LEARNING = 3.0  # a step of learning takes about as long as three passes of its images


@dataclass(frozen=True)
class Work:
    """A step of a command that takes its time.

    Attributes:
        what: what would be done.
        passes: images that would pass through the whole network, one backward pass being two.
    """

    what: str
    passes: float


def foretell(
    call: Writing, checkpoint: Checkpoint, outputs: Sequence[Path], works: Sequence[Work], how: Data
) -> None:
    """Say what a command would do; the time of one pass is measured, everything else counted."""
    from gatepruner.report.terminal import duration

    second = _seconds(checkpoint, how) if works else 0.0
    size = sum(it.numel() * it.element_size() for it in checkpoint.weights.values())
    seconds = [work.passes * second for work in works]
    for work, time in zip(works, seconds, strict=True):
        call.terminal.say(f"would {work.what}: about {duration(time)}")
    written = [*outputs, configuration_path(outputs[0])]
    names = ", ".join(map(str, written))
    call.terminal.say(f"would write {names}; the whole network has {size / 2**20:,.1f} MiB")
    if works:
        total = duration(sum(seconds))
        call.terminal.say(f"about {total} in all on this device; the dry run has written nothing")
    steps = [
        {"step": work.what, "seconds": time} for work, time in zip(works, seconds, strict=True)
    ]
    given = {"outputs": [str(path) for path in written], "bytes": size, "steps": steps}
    call.finish({"dry_run": True, **given, "seconds": sum(seconds)})


def _seconds(checkpoint: Checkpoint, how: Data) -> float:
    """Time of one image in a pass of a full batch."""
    from gatepruner.measuring.device import pick_device
    from gatepruner.measuring.latency import latency

    measured = latency(
        {"whole": checkpoint.build()},
        checkpoint.network.base.input_shape,
        batch=how.batch_size,
        device=pick_device(how.device),
        runs=2,
    )
    return measured["whole"].median / how.batch_size
