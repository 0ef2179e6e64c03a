"""What several commands measure, as plain JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.options import Data
from gatepruner.cli.problems import Problems
from gatepruner.measuring.engines import ENGINES

if TYPE_CHECKING:
    from gatepruner.measuring.latency import Latency
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.network import Network
    from gatepruner.networks.onnx_file import Subject
    from gatepruner.pruning.meter import Meter
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Timing:
    """Latency.

    Attributes:
        latency: measure latency, too.
        latency_batch: images in a timed pass.
        engine: what runs the network in a timed pass.
        threads: CPU threads of a timed pass; by default as many as PyTorch uses.
    """

    latency: bool = False
    latency_batch: Annotated[int, typer.Option(min=1)] = 1
    engine: str = "eager"
    threads: Annotated[int | None, typer.Option(min=1)] = None

    def meter(self, whole: Network, how: Data, terminal: Terminal) -> Meter:
        """What tells the costs of a network and of what is left of it."""
        from gatepruner.measuring.device import pick_device
        from gatepruner.pruning.meter import Meter

        device, track = pick_device(how.device), terminal.track("measuring latency")
        engine, threads = self.engine, self.threads
        return Meter(whole, device, self.latency_batch, engine=engine, threads=threads, track=track)

    def latency_of(self, subject: Subject, how: Data, terminal: Terminal) -> Latency:
        """The latency of a network alone."""
        from gatepruner.measuring.bench import bench

        (one,) = bench(
            {str(subject.network): subject},
            [self.engine],
            [self.latency_batch],
            device=how.device,
            threads=self.threads,
            seconds=2.0,
            track=terminal.track("measuring latency"),
        )
        return one.latency

    def check(self, problems: Problems) -> None:
        """Collect why latency cannot be measured on any device."""
        from gatepruner.measuring.engines import check_engine, threads_of

        with problems:
            check_engine(self.engine)
        with problems:
            threads_of(self.threads)


@dataclass(frozen=True)
class Engines:
    """Latency.

    Attributes:
        latency_batch: images in a timed pass.
        threads: CPU threads of a timed pass; by default as many as PyTorch uses.
    """

    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINES",
            help=f"Measure latency, too, on these engines, with commas: {', '.join(ENGINES)}.",
        ),
    ] = ""
    latency_batch: Annotated[int, typer.Option(min=1)] = 1
    threads: Annotated[int | None, typer.Option(min=1)] = None

    @property
    def timings(self) -> list[Timing]:
        """How latency is measured on each engine, each once."""
        names = dict.fromkeys(name.strip() for name in self.engine.split(",") if name.strip())
        return [Timing(True, self.latency_batch, name, self.threads) for name in names]

    def check(self, problems: Problems) -> None:
        """Collect why latency cannot be measured."""
        for timing in self.timings:
            timing.check(problems)

    def meters(self, whole: Network, how: Data, terminal: Terminal) -> list[Meter]:
        """What measures networks as `prune` writes them, on every engine.

        The whole network has been measured, so that an engine that cannot run it is refused.
        """
        folded = whole.without_gates()
        meters = [timing.meter(folded, how, terminal) for timing in self.timings]
        for meter in meters:
            meter.latencies([folded])
        return meters


def latencies(meter: Meter, small: Checkpoint) -> dict[str, dict[str, Any]]:
    """Measured times of the whole network and of a smaller one."""
    times = meter.latencies([meter.whole, small.network])
    return {name: asdict(one) for name, one in zip(("whole", "pruned"), times, strict=True)}


def change(whole: Checkpoint, small: Checkpoint) -> dict[str, Any]:
    """Blocks, parameters and MACs before and after."""
    from gatepruner.measuring.cost import count

    sizes: dict[str, Any] = {}
    for name, network in (("before", whole.network), ("after", small.network)):
        cost = count(network)
        counts = {"blocks": network.depth, "params": cost.params, "macs": cost.macs}
        sizes |= {f"{what}_{name}": number for what, number in counts.items()}
    return sizes


def say_images(recalibrated: Checkpoint, given: int, terminal: Terminal) -> None:
    """Say how many images statistics were estimated from, if there was no memory for all."""
    from gatepruner.measuring.recalibration import MEMORY

    used = recalibrated.notes["history"][-1]["images"]
    if used < given:
        terminal.say(
            f"recalibrated on {used:,} of {given:,} images: the activations of more exceed "
            f"{MEMORY >> 30} GiB"
        )
