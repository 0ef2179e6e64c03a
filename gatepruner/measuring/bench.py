"""Several networks on several engines at several batch sizes, measured in turns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatepruner import processes
from gatepruner.errors import EngineError, listed
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.engines import ENGINES, device_of, ready, threads_of, torch_threads
from gatepruner.measuring.latency import Latency, in_turns, random_images, rounds_within, summary
from gatepruner.measuring.onnx_program import OnnxProgram
from gatepruner.measuring.programs import Program, check_same
from gatepruner.networks.onnx_file import OnnxFile, Subject

Case = tuple[str, str, int]  # network, engine and batch size


@dataclass(frozen=True)
class Measured:
    """The latency of a network on an engine.

    Attributes:
        name: of the network.
        latency: with engine and batch size.
        difference: greatest difference of a logit from PyTorch's, or of an ONNX file's from ONNX
            Runtime's, relative to the greatest one.
    """

    name: str
    latency: Latency
    difference: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON; times in seconds."""
        return {"network": self.name, "difference": self.difference, **asdict(self.latency)}


@processes.decided_by_the_first
def bench(
    checkpoints: Mapping[str, Subject],
    engines: Sequence[str] = ("eager",),
    batches: Sequence[int] = (1,),
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    seconds: float = 10.0,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Measured]:
    """Measure several networks on several engines in turns, so that conditions are the same.

    Of several processes the first one measures, while the others wait for what it has measured.

    Args:
        checkpoints: the networks by name, each on random images of its own size; an ONNX file only
            on engines that read ONNX.
        engines: keys of `gatepruner.measuring.engines.ENGINES`.
        batches: numbers of images per pass.
        device: where to measure; engines that do not run there are measured on the CPU.
        threads: CPU threads; by default as many as PyTorch uses.
        seconds: for about how long to measure, in 10 to 300 rounds.
        track: wraps the rounds, to show progress.

    Returns:
        The measurements, engine by engine, then by batch size and network.

    Raises:
        DeviceError: this machine does not have the device or so many threads.
        EngineError: an engine is not installed, cannot run a network, or computes something else;
            or none of them reads ONNX files.
    """
    device, threads = pick_device(device), threads_of(threads)
    places = {engine: device_of(engine, device) for engine in engines}
    check_engines(checkpoints, engines)
    programs = {name: _program(name, one) for name, one in checkpoints.items()}
    calls, differences = dict[Case, Callable[[], object]](), dict[Case, float]()
    with torch_threads(threads), torch.inference_mode():
        for engine, batch, name in itertools.product(engines, batches, programs):
            if not _runs(engine, checkpoints[name]):
                continue
            case = name, engine, batch
            calls[case], differences[case] = _prepared(
                programs[name],
                engine,
                random_images(batch, programs[name].input_shape, places[engine]),
                threads,
            )
        times = in_turns(calls, rounds_within(seconds, calls, device), device, track)
    measured = []
    for (name, engine, batch), taken in times.items():
        place = places[engine]
        used = threads if place.type == "cpu" else None
        how = {"batch": batch, "device": str(place), "engine": engine, "threads": used}
        measured.append(Measured(name, summary(taken, **how), differences[name, engine, batch]))
    return measured


def check_engines(checkpoints: Mapping[str, Subject], engines: Sequence[str]) -> None:
    """Refuse networks that none of the engines can run.

    Raises:
        EngineError: there are ONNX files, and no engine reads ONNX.
    """
    files = [
        name
        for name, one in checkpoints.items()
        if not any(_runs(engine, one) for engine in engines)
    ]
    if files:
        able = [name for name, engine in ENGINES.items() if engine.reads_onnx]
        raise EngineError(
            f"{', '.join(engines)} cannot run {listed(files)} as an ONNX file: expected one of "
            f"{', '.join(able)}",
            engine=able[0],
        )


def _runs(engine: str, checkpoint: Subject) -> bool:
    return not isinstance(checkpoint, OnnxFile) or ENGINES[engine].reads_onnx


def _program(name: str, checkpoint: Subject) -> Program:
    if isinstance(checkpoint, OnnxFile):
        return OnnxProgram.of(checkpoint, name)
    return Program(checkpoint.build(), checkpoint.network.base.input_shape, name)


def _prepared(
    program: Program, engine: str, images: torch.Tensor, threads: int
) -> tuple[Callable[[], object], float]:
    """A pass of images on an engine, and how far its logits are from the network's own."""
    running = ready(engine, program, images, threads)
    expected = program.on(images.device)(images)
    what, rounding = f"{program.name} on {engine}", program.rounding
    difference = check_same(what, running(images), expected, rounding)
    return functools.partial(running, images), difference
