"""Latency: the time of a forward pass on an engine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gatepruner import processes
from gatepruner.errors import DataError
from gatepruner.measuring.engines import device_of, ready, threads_of, torch_threads
from gatepruner.measuring.programs import Program
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint

Name = TypeVar("Name")


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, in seconds.

    Attributes:
        median: median of all runs.
        low: first quartile.
        high: third quartile.
        runs: number of measured passes.
        batch: images per pass.
        device: where it was measured.
        engine: what ran the network.
        threads: CPU threads; `None` on other devices.
    """

    median: float
    low: float
    high: float
    runs: int
    batch: int
    device: str
    engine: str = "eager"
    threads: int | None = None

    @property
    def conditions(self) -> str:
        """What the times depend on besides the network: `onnxruntime, batch size 1, cpu, …`."""
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}"
        where = f"{self.engine}, batch size {self.batch}, {self.device}"
        return where if self.threads is None else where + threads

    def scaled(self, factor: float) -> Latency:
        """The latency with its times multiplied by `factor`."""
        low, median, high = (factor * time for time in (self.low, self.median, self.high))
        return replace(self, median=median, low=low, high=high)


@processes.decided_by_the_first
def latency(
    modules: Mapping[str, nn.Module | Checkpoint],
    input_shape: Shape | None = None,
    *,
    batch: int = 1,
    device: str | torch.device = "cpu",
    engine: str = "eager",
    threads: int | None = None,
    runs: int = 30,
    seconds: float | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Latency]:
    """Measure the latency of several modules in turns, so that conditions are the same for all.

    Of several processes the first one measures, while the others wait for what it has measured.

    Args:
        modules: modules or checkpoints by name; modules stay on their devices.
        input_shape: `(C, H, W)` of one image; by default that of the first checkpoint.
        batch: images per pass.
        device: where to measure; engines that do not run there are measured on the CPU.
        engine: what runs the modules, one of `gatepruner.measuring.engines.ENGINES`.
        threads: CPU threads; by default as many as PyTorch uses.
        runs: number of rounds, after three warm-up rounds.
        seconds: for about how long to measure, in 10 to 300 rounds, instead of `runs`.
        track: wraps the rounds, to show progress.

    Returns:
        The latency of each module, by name.

    Raises:
        DataError: there is neither an input shape nor a checkpoint.
        DeviceError: this machine does not have the device or so many threads.
        EngineError: the engine is not installed, or cannot run a module; names the operation.
    """
    shape = input_shape or _shape_of(modules.values())
    where, threads = device_of(engine, device), threads_of(threads)
    built = {
        name: one.build() if isinstance(one, Checkpoint) else one for name, one in modules.items()
    }
    images = random_images(batch, shape, where)
    modes = {name: module.training for name, module in built.items()}
    with torch_threads(threads), torch.inference_mode():
        running = {
            name: ready(engine, Program(module, shape, named(module)), images, threads)
            for name, module in built.items()
        }
        calls = {name: functools.partial(one, images) for name, one in running.items()}
        runs = runs if seconds is None else rounds_within(seconds, calls, where)
        times = in_turns(calls, runs, where, track)
    for name, training in modes.items():
        built[name].train(training)
    used = threads if where.type == "cpu" else None
    how = {"batch": batch, "device": str(where), "engine": engine, "threads": used}
    return {name: summary(taken, **how) for name, taken in times.items()}


def random_images(batch: int, shape: Shape, device: torch.device) -> Tensor:
    """Random images `(batch, C, H, W)`, the same whenever they are asked for."""
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(device)


def named(module: nn.Module) -> str:
    """What to call a module in error messages."""
    return f"the {type(module).__name__}"


def in_turns(
    calls: Mapping[Name, Callable[[], object]],
    runs: int,
    device: torch.device,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[Name, list[float]]:
    """The seconds of each call in every round, after three warm-up rounds.

    Args:
        calls: what to time, by name.
        runs: number of rounds.
        device: what to wait for before the clock is read.
        track: wraps the rounds, to show progress.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in track(range(runs + 3)):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            _wait_for(device)
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    return times


def _shape_of(modules: Iterable[nn.Module | Checkpoint]) -> Shape:
    """The shape of one image for the first checkpoint."""
    for one in modules:
        if isinstance(one, Checkpoint):
            return one.network.base.input_shape
    raise DataError("cannot tell the shape of images from modules", input_shape="(C, H, W)")


def rounds_within(
    seconds: float, calls: Mapping[Name, Callable[[], object]], device: torch.device
) -> int:
    """How many rounds take about so many seconds, but 10 at least and 300 at most."""
    once = in_turns(calls, 1, device)
    rounds = seconds / max(sum(taken for (taken,) in once.values()), 1e-9)
    return min(max(int(rounds), 10), 300)


def summary(times: list[float], **conditions: Any) -> Latency:
    """The latency of measured seconds; the conditions are the other fields of `Latency`."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Latency(median, low, high, len(times), **conditions)


def _wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # by default it waits for the first GPU
    elif device.type == "mps":
        torch.mps.synchronize()
