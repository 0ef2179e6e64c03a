"""Accuracy at equal measured latency: gatepruner, Torch-Pruning, random blocks, from scratch.

All start from one trained CIFAR-10 ResNet-56. Targets are shares of its measured latency, at
batch sizes 1 and 128. Every method goes down a ladder of ever smaller networks; for each target
the first one is taken that is fast enough, found by interpolation, each timed in turns with the
whole network. All are recalibrated with the same training images and fine-tuned with the same
recipe, the whole network as their teacher: they match its last feature map. Where that is narrower
than the teacher's (-stream), they match logits. Accuracy is counted on val and test together. Every
setting is a constant of this script: nothing is chosen on val or test.

gatepruner    gates learned once per seed; the path holds for all targets
tp-CRITERION  Torch-Pruning, channels within the blocks (of the first convolution of each)
tp-CRITERION-stream  the same and the channels of the stream that the blocks add to
random        blocks in random order
scratch       gatepruner's architecture with fresh weights, no teacher, a recipe for that (one
              cycle, peak 0.1), and gate learning's epochs, rounded up, on top of fine-tuning's;
              at 0 epochs there is no such network

How Torch-Pruning is set up is in `channels.py`. A target that a method cannot reach is recorded as
such, with the least share that it can.

Latencies come first in every seed: let the machine be idle until then. Work is kept in
`results/against_torch_pruning.work/`: a rerun with the same settings continues where the last one
ended. Needs Torch-Pruning 1.6 and an image folder with train, val and test.

usage: python benchmarks/against_torch_pruning.py --checkpoint FILE --data DIR [--epochs 60 ...]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import channels
import matplotlib
import record
import torch
from columns import grouped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gatepruner
from gatepruner.images.normalization import IMAGENET
from gatepruner.measuring.engines import device_of, ready
from gatepruner.measuring.latency import in_turns, random_images, rounds_within, summary
from gatepruner.measuring.programs import Program
from gatepruner.report.style import STYLE, save_figure

NAME = "against_torch_pruning"
METHODS = ("gatepruner", *channels.METHODS, "random", "scratch")
GATING, RECALIBRATION = 10_000, 2_000  # training images
TOLERANCE = 0.01  # of the latency, by which a target may be missed
WHOLE = "whole"
LADDERS = {"scratch": "gatepruner"}  # whose networks it has
UNITS = {"gatepruner": "blocks", "channels": "channels", "both": "both"}  # what our paths remove
GATES = gatepruner.GateRecipe()
SCRATCH = gatepruner.Recipe(learning_rate=0.1, schedule="onecycle")
COLORS = {"gatepruner": "#0b5fa5", "random": "#8a8a8a", "scratch": "#222222"}
COLORS |= {"tp-norm": "#d1661a", "tp-taylor": "#2f8f4e", "tp-bn": "#9a3fb0"}


@dataclass(frozen=True, eq=False)
class Task:
    """What all methods are given."""

    whole: gatepruner.Checkpoint
    gating: gatepruner.Images
    recalibration: gatepruner.Images
    train: gatepruner.Images
    held_out: gatepruner.Images
    device: str
    work: Path
    gate_recipe: gatepruner.GateRecipe = GATES
    tp_steps: int = 100
    seconds: tuple[float, float] = (2.0, 10.0)  # of a brief and of a long measurement of latency
    engine: str = "eager"  # that latency is measured on

    @property
    def gate_steps(self) -> int:
        recipe = self.gate_recipe
        return recipe.warmup + len(self.whole.network.removable) * recipe.steps

    def scratch_epochs(self, epochs: int) -> int:
        """Fine-tuning's epochs and as many as gate learning saw images, rounded up."""
        seen = self.gate_steps * self.gate_recipe.batch_size
        return epochs + math.ceil(seen / len(self.train))


@dataclass(frozen=True)
class Ladder:
    """Ever smaller networks of one method.

    Attributes:
        steps: the last one's number; number 0 is the whole network.
        at: the network of a number, before it is recalibrated.
        seconds: that it took to learn the order.
    """

    steps: int
    at: Callable[[int], gatepruner.Checkpoint]
    seconds: float = 0.0


@functools.cache
def ladder(task: Task, method: str, seed: int) -> Ladder:
    """The networks of a method; from scratch, gatepruner's architectures are trained."""
    if method in channels.METHODS:
        return by_channels(task, method, seed)
    if method == "random":
        return by_blocks(task.whole, gatepruner.rank(task.whole, "random", seed=seed))
    units = UNITS[method]
    path = task.work / (f"gates-{seed}.pt" if units == "blocks" else f"{units}-{seed}.pt")
    if not path.exists():
        recipe, start = replace(task.gate_recipe, seed=seed, units=units), time.perf_counter()
        learned = gatepruner.learn_gates(task.whole, task.gating, recipe, device=task.device)
        notes = {**learned.notes, "seconds": time.perf_counter() - start}
        gatepruner.save(replace(learned, notes=notes), path)
    gated = gatepruner.load(path)
    every = by_blocks(gated, gatepruner.rank(gated), gated.notes["seconds"])
    return replace(every, steps=len(gated.path))  # after slices, a ranking goes on with blocks


def by_blocks(
    checkpoint: gatepruner.Checkpoint, ranking: gatepruner.Ranking, seconds: float = 0.0
) -> Ladder:
    def at(number: int) -> gatepruner.Checkpoint:
        return gatepruner.fold_gates(gatepruner.prune(checkpoint, ranking, number))

    return Ladder(len(ranking.names), at, seconds)


def by_channels(task: Task, method: str, seed: int) -> Ladder:
    def taken() -> dict[str, Any]:
        how: dict[str, Any] = {"steps": task.tp_steps, "seed": seed, "device": task.device}
        start = time.perf_counter()
        history = channels.history(task.whole, task.train, method, **how)
        return {**history, "seconds": time.perf_counter() - start}

    found = record.once(task.work / f"{method}-{seed}.json", taken)
    entries, ends = found["history"], found["ends"]

    def at(number: int) -> gatepruner.Checkpoint:
        return channels.narrowed(task.whole, method, entries[: ends[number]])

    return Ladder(len(ends) - 1, at, found["seconds"])


@functools.cache
def timed(
    task: Task, method: str, seed: int, batch: int, number: int, seconds: float
) -> dict[str, Any]:
    """Latency of a network, in turns with the whole one's, for about so many seconds."""
    small = running(task, method, seed, batch, number)
    calls = {"whole": running(task, WHOLE, 0, batch, 0), "small": small}
    where = device_of(task.engine, task.device)
    with torch.inference_mode():
        times = in_turns(calls, rounds_within(seconds, calls, where), where)
    threads = torch.get_num_threads() if where.type == "cpu" else None
    how = {"batch": batch, "device": str(where), "engine": task.engine, "threads": threads}
    found = {name: summary(taken, **how) for name, taken in times.items()}
    kept = found["small"].median / found["whole"].median
    return {"kept": kept, "latency": {name: asdict(one) for name, one in found.items()}}


@functools.lru_cache(16)  # preparing takes seconds, and the whole network is in every measurement
def running(
    task: Task, method: str, seed: int, batch: int, number: int
) -> Callable[[], torch.Tensor]:
    """A network of a ladder, or the whole one, ready to run on the engine."""
    network = task.whole if method == WHOLE else ladder(task, method, seed).at(number)
    shape = network.network.base.input_shape
    images = random_images(batch, shape, device_of(task.engine, task.device))
    program = Program(network.build(), shape, f"{method} {number}")
    with torch.inference_mode():
        engine = ready(task.engine, program, images, torch.get_num_threads())
    return functools.partial(engine, images)


def pick(task: Task, method: str, seed: int, batch: int, share: int) -> dict[str, Any]:
    """The first network of a ladder that keeps at most a share (%) of the latency."""
    measure = functools.partial(timed, task, method, seed, batch)
    limit, (brief, long) = share / 100, task.seconds
    steps = ladder(task, method, seed).steps
    least = measure(steps, brief)["kept"]
    if least > limit:
        return {"number": None, "kept": least}
    first = crossing(lambda number: measure(number, brief)["kept"], steps, least, limit)
    for number in range(first, steps + 1):  # the long measurement has the last word
        found = measure(number, long)
        if found["kept"] <= limit + TOLERANCE:
            return {"number": number, **found}
    return {"number": None, "kept": found["kept"]}


def crossing(kept: Callable[[int], float], steps: int, least: float, limit: float) -> int:
    """The first number at which what is kept is at most a limit, or a little less, as interpolated.

    Args:
        kept: the share kept at a number; 1 at 0, and falling except for noise.
        steps: the last number.
        least: the share kept there.
        limit: at least that.
    """
    (low, above), (high, below) = (0, 1.0), (steps, least)
    aim = limit - TOLERANCE / 2  # so that neither end stays where it is
    while high - low > 1 and limit - below > TOLERANCE:
        guess = low + round((high - low) * (above - aim) / (above - below))
        middle = min(max(guess, low + 1), high - 1)
        found = kept(middle)
        if found <= limit:
            high, below = middle, found
        else:
            low, above = middle, found
    return high


@functools.lru_cache(1)
def prepared(task: Task, method: str, seed: int, number: int) -> gatepruner.Checkpoint:
    """The network of a number, with fresh weights from scratch, else recalibrated.

    Recalibrated on the CPU, where it is repeatable, so that fine-tuning can be resumed.
    """
    small = ladder(task, method, seed).at(number)
    if method == "scratch":
        return replace(small, weights=small.network.initial_weights(seed), notes=task.whole.notes)
    return gatepruner.recalibrate(small, task.recalibration, device="cpu")


def outcome(task: Task, method: str, seed: int, number: int, epochs: int) -> dict[str, Any]:
    """Accuracy and cost of one network, fine-tuned for so many epochs."""
    small, start, total = prepared(task, method, seed, number), time.perf_counter(), 0
    if epochs:
        total = task.scratch_epochs(epochs) if method == "scratch" else epochs
        recipe = SCRATCH if method == "scratch" else gatepruner.FINE_TUNING
        match = "logits" if method.endswith("-stream") else recipe.match
        state = task.work / f"state-{method}-{seed}-{number}-{epochs}.pt"
        small = gatepruner.finetune(
            small,
            task.train,
            replace(recipe, epochs=total, seed=seed, match=match),
            teacher=None if method == "scratch" else task.whole,
            device=task.device,
            state=state,
            resume=state.exists(),
        )
        state.unlink()
    return {
        **evaluated(task, small),
        "trained_epochs": total,
        "path_seconds": ladder(task, method, seed).seconds,
        "finetune_seconds": time.perf_counter() - start,
    }


def evaluated(task: Task, checkpoint: gatepruner.Checkpoint) -> dict[str, Any]:
    """Accuracy on all held-out images together, MACs and parameters."""
    found = gatepruner.accuracy(checkpoint, task.held_out, device=task.device)
    cost = gatepruner.count(checkpoint.network)
    return {**found.to_json(), "macs": cost.macs, "params": cost.params}


def measured(task: Task, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every cell, those out of reach too; what is finished is not measured again."""

    def once(work: Callable[..., dict[str, Any]], *key: Any) -> dict[str, Any]:
        name = "-".join(map(str, (work.__name__, *key)))
        return record.once(task.work / f"{name}.json", lambda: work(task, *key))

    targets = list(itertools.product(chosen.batches, chosen.shares))
    for seed in range(chosen.seeds):
        picks = {  # all latencies first, under the same conditions
            (method, *target): once(pick, LADDERS.get(method, method), seed, *target)
            for method in chosen.methods
            for target in targets
        }
        for (method, batch, share), picked in picks.items():
            number = picked["number"]
            for epochs in (chosen.epochs,) if method == "scratch" else (0, chosen.epochs):
                cell = {"method": method, "batch": batch, "share": share}
                cell |= {"seed": seed, "epochs": epochs, "reached": number is not None}
                found = once(outcome, method, seed, number, epochs) if cell["reached"] else {}
                yield {**cell, **picked, **found}
                print({**cell, **found}, flush=True)


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the result."""
    method = METHODS.index(row["method"])
    return row["batch"], row["epochs"], -row["share"], method, row["seed"]


def draw(rows: Sequence[Mapping[str, Any]], whole: float, stem: Path) -> None:
    """Accuracy against measured latency: a column per batch size, a row per budget."""
    panels = grouped(rows, itemgetter("epochs", "batch"))
    size = len({epochs for epochs, _ in panels}), len({batch for _, batch in panels})
    with matplotlib.rc_context(STYLE):
        inches = (3.6 * size[1] + 1.6, 2.9 * size[0])
        figure = Figure(figsize=inches, layout="constrained")
        every = figure.subplots(*size, sharex=True, squeeze=False)
        lines: dict[str, Any] = {}
        for axes, (epochs, batch) in zip(every.flat, sorted(panels), strict=True):
            axes.axhline(100 * whole, color="#8a8a8a", linestyle="--", linewidth=1)
            reached = [row for row in panels[epochs, batch] if row["reached"]]
            for method, found in grouped(reached, itemgetter("method")).items():
                lines[method] = draw_line(axes, method, found)
            budget = f"fine-tuning epochs: {epochs}" if epochs else "not fine-tuned"
            axes.set_title(f"batch size {batch}, {budget}", fontsize=9)
            axes.set_xlabel("measured latency kept (%)")
            axes.set_ylabel("accuracy (%)")
        figure.legend(list(lines.values()), list(lines), loc="outside right center")
    save_figure(figure, stem)


def draw_line(axes: Axes, method: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Means over the seeds at every share, with standard deviations."""
    groups = list(grouped(rows, itemgetter("share")).values())
    kept, accuracies = (
        [[100 * row[key] for row in group] for group in groups] for key in ("kept", "accuracy")
    )
    color, stream = COLORS[method.removesuffix("-stream")], method.endswith("-stream")
    return axes.errorbar(
        list(map(statistics.fmean, kept)),
        list(map(statistics.fmean, accuracies)),
        yerr=[statistics.stdev(values) if values[1:] else 0.0 for values in accuracies],
        color=color,
        marker="s" if method in channels.METHODS else "o",
        markerfacecolor="white" if stream else color,
        linestyle=":" if stream else "-",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
    )


def the_task(chosen: argparse.Namespace) -> Task:
    quick = {"train": 256, "val": 100, "test": 100}
    limits = quick if chosen.quick else dict.fromkeys(quick)
    whole, train, val, test = record.loaded(chosen, **limits)
    normalize = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}  # as it was trained
    task = Task(
        replace(whole, notes={"normalize": normalize, **whole.notes}),
        gating=train.spread(GATING),
        recalibration=train.spread(RECALIBRATION),
        train=train.spread(chosen.limit),
        held_out=val.joined(test),
        device=chosen.device,
        work=record.folder(chosen.quick),
    )
    few = gatepruner.GateRecipe(warmup=2, steps=1, batch_size=16)
    return replace(task, gate_recipe=few, tp_steps=20, seconds=(0.2, 0.5)) if chosen.quick else task


def settings_of(task: Task, chosen: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on; every such setting has a folder of work of its own."""
    on_gpu = task.device.startswith("cuda")
    return {
        "checkpoint": f"{chosen.checkpoint.name} {task.whole.fingerprint[:12]}",
        "device": task.device,
        **({"device_name": torch.cuda.get_device_name()} if on_gpu else {}),
        "threads": torch.get_num_threads(),
        "images_trained_on": len(task.train),
        "images_gates": len(task.gating),
        "images_recalibration": len(task.recalibration),
        "images_held_out": len(task.held_out),
        "gate_steps": task.gate_steps,
        "torch_pruning": importlib.metadata.version("torch-pruning"),
        "torch_pruning_steps": task.tp_steps,
        "matched": gatepruner.FINE_TUNING.match,
    }


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--epochs", type=int, default=2, help="of fine-tuning, besides 0")
    options.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options.add_argument("--limit", type=int, help="training images to fine-tune on, not all")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--shares", nargs="+", type=int, default=[80, 65, 50, 35], help="in %%")
    options.add_argument("--batches", nargs="+", type=int, default=[1, 128], help="batch sizes")
    chosen = options.parse_args()
    stem = record.folder(chosen.quick) / NAME
    task = the_task(chosen)
    settings = settings_of(task, chosen)
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    task = replace(task, work=stem.with_suffix(".work") / digest)
    task.work.mkdir(parents=True, exist_ok=True)
    whole = record.once(task.work / "whole.json", lambda: evaluated(task, task.whole))
    rows = sorted(measured(task, chosen), key=place)
    more = {"epochs_scratch": task.scratch_epochs(chosen.epochs), "seeds": chosen.seeds}
    more |= {f"whole_{key}": round(whole[key], 4) for key in ("accuracy", "macs", "params")}
    record.write(NAME, {**settings, "epochs": chosen.epochs, **more}, rows, quick=chosen.quick)
    draw(rows, whole["accuracy"], stem)


if __name__ == "__main__":
    main()
