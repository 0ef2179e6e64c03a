"""Latency: the time of a forward pass, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gatepruner.measuring.cost import count
from gatepruner.models import Shape
from gatepruner.networks.network import Network


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, in seconds.

    Attributes:
        median: of all runs.
        low: first quartile.
        high: third quartile.
        runs: how many there were.
        batch: images in one pass.
        device: where.
    """

    median: float
    low: float
    high: float
    runs: int
    batch: int
    device: str


def latency(
    modules: Mapping[str, nn.Module],
    input_shape: Shape,
    *,
    batch: int = 1,
    device: str | torch.device = "cpu",
    runs: int = 30,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Latency]:
    """Measure modules against each other, in turns, so that all meet the same conditions.

    Args:
        modules: what to measure, by name; all of them are moved to the device.
        input_shape: `(C, H, W)` of one image.
        batch: images in one pass.
        device: where to measure.
        runs: rounds, after three that are not counted.
        track: wraps the rounds, to show progress.

    Returns:
        The latency of each module, by name.
    """
    device = torch.device(device)
    images = torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    modes = {name: module.training for name, module in modules.items()}
    ready = {name: module.to(device).eval() for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in modules}
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
    return {name: _summary(found, batch, device) for name, found in times.items()}


def savings(
    network: Network, cost: str, device: str | torch.device = "cpu", batch: int = 1
) -> dict[str, float]:
    """What the removal of each removable block alone saves.

    Args:
        network: of which a block is removed.
        cost: `"params"`, `"macs"`, or `"latency"`, in seconds, measured with random weights.
        device: where latency is measured.
        batch: images in one pass when it is.
    """
    names = network.removable
    without = {name: network.without([name]) for name in names}
    if cost != "latency":
        whole = getattr(count(network), cost)
        return {name: whole - getattr(count(small), cost) for name, small in without.items()}
    weights = network.initial_weights()
    modules = {
        name: small.build({key: weights[key] for key in small.state()})
        for name, small in {"": network, **without}.items()
    }
    found = latency(modules, network.base.input_shape, batch=batch, device=device)
    return {name: found[""].median - found[name].median for name in names}


def _summary(times: list[float], batch: int, device: torch.device) -> Latency:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Latency(median, low, high, len(times), batch, str(device))


def _wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
