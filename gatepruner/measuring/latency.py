"""Latency: the time of a forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from gatepruner.errors import DataError
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint


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
    """

    median: float
    low: float
    high: float
    runs: int
    batch: int
    device: str

    def scaled(self, factor: float) -> Latency:
        """The latency with its times multiplied by `factor`."""
        low, median, high = (factor * time for time in (self.low, self.median, self.high))
        return replace(self, median=median, low=low, high=high)


def latency(
    modules: Mapping[str, nn.Module | Checkpoint],
    input_shape: Shape | None = None,
    *,
    batch: int = 1,
    device: str | torch.device = "cpu",
    runs: int = 30,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Latency]:
    """Measure the latency of several modules in turns, so that conditions are the same for all.

    Args:
        modules: modules or checkpoints by name; modules are moved to the device.
        input_shape: `(C, H, W)` of one image; by default that of the first checkpoint.
        batch: images per pass.
        device: where to measure.
        runs: number of rounds, after three warm-up rounds.
        track: wraps the rounds, to show progress.

    Returns:
        The latency of each module, by name.

    Raises:
        DataError: there is neither an input shape nor a checkpoint.
    """
    device, shape = torch.device(device), input_shape or _shape_of(modules.values())
    built = {
        name: one.build() if isinstance(one, Checkpoint) else one for name, one in modules.items()
    }
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    modes = {name: module.training for name, module in built.items()}
    ready = {name: module.to(device).eval() for name, module in built.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    with torch.inference_mode():
        for turn in track(range(runs + 3)):
            for name, module in ready.items():
                start = time.perf_counter()
                module(images)
                _wait_for(device)
                if turn >= 3:
                    times[name].append(time.perf_counter() - start)
    for name, training in modes.items():
        ready[name].train(training)
    return {name: _summary(seconds, batch, device) for name, seconds in times.items()}


def _shape_of(modules: Iterable[nn.Module | Checkpoint]) -> Shape:
    """The shape of one image for the first checkpoint."""
    for one in modules:
        if isinstance(one, Checkpoint):
            return one.network.base.input_shape
    raise DataError("cannot tell the shape of images from modules", input_shape="(C, H, W)")


def _summary(times: list[float], batch: int, device: torch.device) -> Latency:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Latency(median, low, high, len(times), batch, str(device))


def _wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
