"""Accuracy at equal measured latency: gatepruner, Torch-Pruning, random blocks, from scratch.

All start from one trained CIFAR-10 ResNet-56. Targets are shares of its measured latency, at
batch sizes 1 and 128. Every method goes down a ladder of ever smaller networks; for each target
the first one is taken that is fast enough, found by bisection, each timed in turns with the whole
network (`gatepruner.latency`). All are recalibrated with the same training images and fine-tuned
with the same recipe, the whole network as their teacher. Accuracy is counted on val and test
together. Every setting is a constant of this script: nothing is chosen on val or test.

gatepruner    gates learned once per seed; the path holds for all targets
tp-CRITERION  Torch-Pruning, channels within the blocks (of the first convolution of each)
tp-CRITERION-stream  the same and the channels of the stream that the blocks add to
random        blocks in random order
scratch       gatepruner's architecture with fresh weights, no teacher, a recipe for that (one
              cycle, peak 0.1), and gate learning's epochs, rounded up, on top of fine-tuning's;
              at 0 epochs there is no such network

Torch-Pruning's criteria are `norm` (group norm), `taylor` (gradients taken anew before each step)
and `bn` (batch-norm scales). As in its own script for CIFAR it prunes globally, in many small steps
towards a ratio of 1, without the last layer and without rounding channels (`round_to` takes
8 channels where one is weak; a layer here has 16). Its penalties while training on are left out:
they cost epochs that the others do not get.

What it can prune here: the channels within all 27 blocks. Those of the stream not as the network
is: it takes the zero padding of the two shortcuts that change shape for an elementwise operation,
so that all three stages lose the same numbers among the first 16 channels, while the padding moves
channel i to i + 8 and i + 16: the result runs, but adds up channels that do not belong together.
For `-stream` the padding is therefore written as the 1x1 convolution that it is (same function, its
weights 0 and 1, trained on like all others); then every stage loses channels of its own.

A target that a method cannot reach is recorded as such, with the least share that it can.

Latencies come first in every seed: let the machine be idle until then. Work is kept in a folder
(`--work`): a rerun with the same settings goes on where the last one
ended, `--collect` only writes what is finished. Needs Torch-Pruning 1.6 and an image folder with
train, val and test.

usage: python benchmarks/against_torch_pruning.py --data DIR [--device cuda --epochs 60 --seeds 3]
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import record
import torch
import torch.nn.functional as F
from latency import STYLE
from matplotlib.figure import Figure
from torch import nn

import gatepruner
from gatepruner.images.normalization import IMAGENET
from gatepruner.measuring.inputs import normalization_of
from gatepruner.models.resnet import BasicBlock, ZeroPadding

NAME = "against_torch_pruning"
ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT.parent / "shared/data/checkpoints/resnet56-split.pt"
CRITERIA = ("norm", "taylor", "bn")
PEERS = tuple(f"tp-{it}{where}" for where in ("", "-stream") for it in CRITERIA)
METHODS = ("gatepruner", *PEERS, "random", "scratch")
GATING, RECALIBRATION = 10_000, 2_000  # training images
STEPS = 100  # of Torch-Pruning
TAYLOR_IMAGES = 256  # training images for the gradients before each of them
TOLERANCE = 0.01  # of the latency, by which a target may be missed
SCRATCH = gatepruner.Recipe(learning_rate=0.1, schedule="onecycle")
COLORS = {"gatepruner": "#0b5fa5", "random": "#8a8a8a", "scratch": "#222222"}
PEER_COLORS = {"norm": "#d1661a", "taylor": "#2f8f4e", "bn": "#9a3fb0"}


@dataclass(frozen=True)
class Task:
    """What all methods are given."""

    whole: gatepruner.Checkpoint
    gating: gatepruner.Images
    recalibration: gatepruner.Images
    train: gatepruner.Images
    held_out: tuple[gatepruner.Images, ...]
    device: str
    work: Path
    quick: bool

    @property
    def gate_recipe(self) -> gatepruner.GateRecipe:
        small: dict[str, Any] = {"warmup": 2, "steps": 1, "batch_size": 16} if self.quick else {}
        return gatepruner.GateRecipe(**small)

    @property
    def tp_steps(self) -> int:
        return 20 if self.quick else STEPS

    def scratch_epochs(self, epochs: int) -> int:
        """Fine-tuning's epochs and as many as gate learning saw images, rounded up."""
        recipe, blocks = self.gate_recipe, len(removable(self.whole))
        seen = (recipe.warmup + blocks * recipe.steps) * recipe.batch_size
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
    seconds: float


class Store:
    """What is finished, one JSON line each: picks and outcomes by their keys."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[tuple[Any, ...], dict[str, Any]] = {}
        if not path.exists():
            path.write_text(json.dumps({"settings": settings}) + "\n")
        first, *lines = path.read_text().splitlines()
        there = json.loads(first)["settings"]
        other = [key for key in settings if there.get(key) != settings[key]]
        if other:
            sys.exit(f"{path} has another {' and '.join(other)}: give another --work")
        for line in lines:
            content = json.loads(line)
            self.found[tuple(content.pop("key"))] = content

    def once(self, key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is kept under the key; worked out and kept if there is nothing yet."""
        if key not in self.found:
            self.found[key] = work()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, **self.found[key]}) + "\n")
            print(*key, json.dumps(self.found[key]), flush=True)
        return self.found[key]


def removable(checkpoint: gatepruner.Checkpoint) -> list[str]:
    return [block.name for block in checkpoint.network.blocks if block.removable]


def by_gates(task: Task, seed: int) -> Ladder:
    path = task.work / f"gates-{seed}.pt"
    if not path.exists():
        recipe, start = replace(task.gate_recipe, seed=seed), time.perf_counter()
        learned = gatepruner.learn_gates(task.whole, task.gating, recipe, device=task.device)
        notes = {**learned.notes, "seconds": time.perf_counter() - start}
        gatepruner.save(replace(learned, notes=notes), path)
    gated = gatepruner.load(path)
    order = [state.gone for state in gated.path]

    def at(number: int) -> gatepruner.Checkpoint:
        return gatepruner.fold_gates(gatepruner.follow(gated, order[:number]))

    return Ladder(len(order), at, gated.notes["seconds"])


def at_random(task: Task, seed: int) -> Ladder:
    order = removable(task.whole)
    random.Random(seed).shuffle(order)
    return Ladder(len(order), lambda number: gatepruner.remove(task.whole, order[:number]), 0.0)


def by_channels(task: Task, seed: int, method: str) -> Ladder:
    import torch_pruning as tp

    path = task.work / f"{method}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(channel_history(task, seed, method)))
    found = json.loads(path.read_text())
    shape = task.whole.network.base.input_shape

    def at(number: int) -> gatepruner.Checkpoint:
        module = plain_module(task.whole, method.endswith("-stream"))
        graph = tp.DependencyGraph().build_dependency(module, torch.zeros(1, *shape))
        graph.load_pruning_history(found["history"][: found["ends"][number]])
        return gatepruner.Checkpoint.of(module, shape, notes=task.whole.notes)

    return Ladder(len(found["ends"]) - 1, at, found["seconds"])


def channel_history(task: Task, seed: int, method: str) -> dict[str, Any]:
    """Which channels Torch-Pruning takes, in its own notation, and how many entries a step has."""
    start, criterion = time.perf_counter(), method.split("-")[1]
    module = plain_module(task.whole, method.endswith("-stream")).to(task.device)
    example = torch.zeros(1, *task.whole.network.base.input_shape, device=task.device)
    pruner = channel_pruner(module, example, method, task.tp_steps)
    generator, ends = torch.Generator().manual_seed(seed), [0]
    for _ in range(task.tp_steps):
        if criterion == "taylor":
            take_gradients(module, task, generator)
        pruner.step()
        ends.append(len(pruner.pruning_history()))
    history = [[name, out, list(map(int, gone))] for name, out, gone in pruner.pruning_history()]
    return {"history": history, "ends": ends, "seconds": time.perf_counter() - start}


def channel_pruner(module: nn.Module, example: torch.Tensor, method: str, steps: int) -> Any:
    import torch_pruning as tp

    kinds: dict[str, tuple[Any, Any]] = {
        "norm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2)),
        "taylor": (tp.pruner.BasePruner, tp.importance.GroupTaylorImportance()),
        "bn": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance()),
    }
    kind, importance = kinds[method.split("-")[1]]
    named = dict(module.named_modules())
    of_stream = [it for name, it in named.items() if name == "conv1" or name.endswith(".conv2")]
    kept = [named["linear"], *([] if method.endswith("-stream") else of_stream)]
    how: dict[str, Any] = {"global_pruning": True, "pruning_ratio": 1.0, "iterative_steps": steps}
    return kind(module, example, importance=importance, ignored_layers=kept, **how)


def take_gradients(module: nn.Module, task: Task, generator: torch.Generator) -> None:
    """Gradients of the loss on some training images, drawn at random, for Taylor's criterion."""
    indices = torch.randperm(len(task.train), generator=generator)[:TAYLOR_IMAGES]
    data = task.train.take(indices).to(torch.device(task.device))
    normalization = normalization_of(task.whole.notes, data.shape[0])
    module.zero_grad()
    for pixels, labels in data.batches(torch.arange(len(data)), 128):
        loss = F.cross_entropy(module(normalization(pixels)), labels, reduction="sum")
        torch.autograd.backward(loss)


def plain_module(checkpoint: gatepruner.Checkpoint, stream: bool) -> nn.Module:
    """The network as its author wrote it; for the stream, padding as a convolution."""
    module = checkpoint.network.base.construct()
    module.load_state_dict(dict(checkpoint.weights))
    for block in list(module.modules()) if stream else ():
        if isinstance(block, BasicBlock) and isinstance(block.shortcut, ZeroPadding):
            block.shortcut = as_convolution(block.shortcut, block.conv1.in_channels)
    return module.eval()


def as_convolution(padding: ZeroPadding, channels: int) -> nn.Conv2d:
    width = padding.before + channels + padding.after
    convolution = nn.Conv2d(channels, width, 1, stride=2, bias=False)
    weight = torch.zeros(width, channels, 1, 1)
    weight[padding.before : padding.before + channels, :, 0, 0] = torch.eye(channels)
    convolution.weight.data = weight
    return convolution


def ladder(task: Task, seed: int, method: str) -> Ladder:
    if method in PEERS:
        return by_channels(task, seed, method)
    return {"gatepruner": by_gates, "scratch": by_gates, "random": at_random}[method](task, seed)


def timed(task: Task, small: gatepruner.Checkpoint, batch: int, seconds: float) -> dict[str, Any]:
    """Latency of a network, in turns with the whole one's, for about so many seconds."""
    modules = {"whole": task.whole.build(), "small": small.build()}
    shape = task.whole.network.base.input_shape
    how: dict[str, Any] = {"batch": batch, "device": task.device}
    first = gatepruner.latency(modules, shape, runs=1, **how)
    runs = int(seconds / sum(one.median for one in first.values()))
    found = gatepruner.latency(modules, shape, runs=min(max(runs, 5), 300), **how)
    whole, one = found["whole"], found["small"]
    return {
        "kept": one.median / whole.median,
        "latency_ms": 1e3 * one.median,
        "latency_ms_low": 1e3 * one.low,
        "latency_ms_high": 1e3 * one.high,
        "whole_ms": 1e3 * whole.median,
        "runs": one.runs,
    }


def pick_from(
    task: Task, climb: Callable[[], Ladder], batch: int, share: int, seen: dict[int, float]
) -> dict[str, Any]:
    """The first network of a ladder that keeps at most a share (%) of the latency."""
    steps = climb()
    brief, long = (0.2, 0.5) if task.quick else (2.0, 10.0)

    def kept(number: int) -> float:
        if number not in seen:
            seen[number] = timed(task, steps.at(number), batch, brief)["kept"]
        return seen[number]

    low, high = 1, steps.steps
    if kept(high) > share / 100:
        return {"number": None, "kept": min(seen.values())}
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) <= share / 100 else (middle + 1, high)
    while True:  # the long measurement has the last word
        found = timed(task, steps.at(low), batch, long)
        if found["kept"] <= share / 100 + TOLERANCE or low == steps.steps:
            return {"number": low, **found}
        low += 1


def prepared(task: Task, method: str, seed: int, steps: Ladder, number: int) -> Any:
    """The network of a number, recalibrated, or with fresh weights; and the seconds it took.

    Recalibrated on the CPU, where it is repeatable, so that fine-tuning can be resumed.
    """
    start = time.perf_counter()
    small = steps.at(number)
    if method == "scratch":
        fresh = small.network.initial_weights(seed)
        return gatepruner.Checkpoint(small.network, fresh, task.whole.notes), 0.0
    small = gatepruner.recalibrate(small, task.recalibration, device="cpu")
    return small, time.perf_counter() - start


def tuned(task: Task, small: Any, method: str, seed: int, epochs: int, state: Path) -> Any:
    """Fine-tuned, or trained from scratch; goes on with the state of an interrupted run."""
    recipe = replace(gatepruner.FINE_TUNING, epochs=epochs, seed=seed)
    teacher: gatepruner.Checkpoint | None = task.whole
    if method == "scratch":
        recipe = replace(SCRATCH, epochs=task.scratch_epochs(epochs), seed=seed)
        teacher = None
    how: dict[str, Any] = {"device": task.device, "state": state, "resume": state.exists()}
    found = gatepruner.finetune(small, task.train, recipe, teacher=teacher, **how)
    state.unlink()
    return found, recipe.epochs


def counted(task: Task, checkpoint: gatepruner.Checkpoint) -> dict[str, Any]:
    """Correct answers on all held-out images together, with Wilson's interval."""
    found = [gatepruner.accuracy(checkpoint, it, device=task.device) for it in task.held_out]
    images = sum(one.images for one in found)
    loss = sum(one.loss * one.images for one in found) / images
    return gatepruner.Accuracy(sum(one.correct for one in found), images, loss).to_json()


def outcomes(
    task: Task,
    store: Store,
    method: str,
    seed: int,
    number: int,
    epochs: Sequence[int],
    steps: Callable[[], Ladder],
) -> None:
    """Accuracy of one network before and after fine-tuning; what is finished is left."""
    ready = functools.cache(lambda: prepared(task, method, seed, steps(), number))

    def outcome(count: int) -> dict[str, Any]:
        small, prune_seconds = ready()
        start, total = time.perf_counter(), 0
        if count:
            state = task.work / f"state-{method}-{seed}-{number}-{count}.pt"
            small, total = tuned(task, small, method, seed, count, state)
        seconds = time.perf_counter() - start
        cost = gatepruner.count(small.network)
        return {
            **counted(task, small),
            "macs": cost.macs,
            "params": cost.params,
            "trained_epochs": total,
            "path_seconds": steps().seconds,
            "prune_seconds": prune_seconds,
            "finetune_seconds": seconds if count else 0.0,
        }

    for count in epochs:
        if count or method != "scratch":
            key = ("outcome", method, seed, number, count)
            store.once(key, functools.partial(outcome, count))


def carry_out(task: Task, store: Store, chosen: argparse.Namespace) -> None:
    """Work out everything that is asked for and not finished."""
    store.once(("whole",), lambda: whole_row(task))
    for seed in range(chosen.seeds):
        ladders = {
            method: functools.cache(functools.partial(ladder, task, seed, method))
            for method in chosen.methods
        }
        numbers = {  # all latencies first, under the same conditions
            method: picked(task, store, chosen, method, seed, steps)
            for method, steps in ladders.items()
        }
        for method, steps in ladders.items():
            for number in numbers[method]:
                outcomes(task, store, method, seed, number, (0, chosen.epochs), steps)


def picked(
    task: Task,
    store: Store,
    chosen: argparse.Namespace,
    method: str,
    seed: int,
    steps: Callable[[], Ladder],
) -> list[int]:
    """The networks of a method that reach the targets, each once."""
    numbers: set[int | None] = set()
    for batch in chosen.batches:
        seen: dict[int, float] = {}
        for share in chosen.shares:
            work = functools.partial(pick_from, task, steps, batch, share, seen)
            found = store.once(pick_key(method, seed, batch, share), work)
            numbers.add(found["number"])
    return sorted(number for number in numbers if number is not None)


def whole_row(task: Task) -> dict[str, Any]:
    cost = gatepruner.count(task.whole.network)
    return {**counted(task, task.whole), "macs": cost.macs, "params": cost.params}


def pick_key(method: str, seed: int, batch: int, share: int) -> tuple[Any, ...]:
    """Scratch takes the architecture that gatepruner ended with."""
    return ("pick", "gatepruner" if method == "scratch" else method, seed, batch, share)


def rows(store: Store, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every finished cell, those out of reach too."""
    cells = (
        (method, batch, share, seed, epochs)
        for batch in chosen.batches
        for epochs in (0, chosen.epochs)
        for share in chosen.shares
        for method in chosen.methods
        for seed in range(chosen.seeds)
        if epochs or method != "scratch"
    )
    for method, batch, share, seed, epochs in cells:
        found = store.found.get(pick_key(method, seed, batch, share))
        if found is None:
            continue
        key = ("outcome", method, seed, found["number"], epochs)
        cell = {"method": method, "batch": batch, "share": share, "seed": seed, "epochs": epochs}
        if found["number"] is None:
            yield {**cell, "reached": False, **found}
        elif key in store.found:
            yield {**cell, "reached": True, **found, **store.found[key]}


def grouped(found: Sequence[Mapping[str, Any]], **wanted: Any) -> dict[int, list[Any]]:
    """Reached cells by their share, those of all seeds together."""
    groups: dict[int, list[Any]] = {}
    for row in found:
        if row["reached"] and all(row[key] == value for key, value in wanted.items()):
            groups.setdefault(row["share"], []).append(row)
    return groups


def draw(found: Sequence[Mapping[str, Any]], whole: float, stem: Path) -> None:
    """Accuracy against measured latency: a column per batch size, a row per budget."""
    batches = sorted({row["batch"] for row in found})
    budgets = sorted({row["epochs"] for row in found})
    with matplotlib.rc_context(STYLE):
        size = (3.6 * len(batches) + 1.6, 2.9 * len(budgets))
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(len(budgets), len(batches), sharex=True, squeeze=False)
        for line, epochs in zip(every, budgets, strict=True):
            for axes, batch in zip(line, batches, strict=True):
                draw_panel(axes, found, whole, batch, epochs)
        entries: dict[str, Any] = {}
        for axes in every.flat:
            handles, names = axes.get_legend_handles_labels()
            entries.update(zip(names, handles, strict=True))
        figure.legend(list(entries.values()), list(entries), loc="outside right center")
        figure.savefig(stem.with_suffix(".png"), dpi=200)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {stem.with_suffix('.png')} and .svg")


def draw_panel(
    axes: Any, found: Sequence[Mapping[str, Any]], whole: float, batch: int, epochs: int
) -> None:
    axes.axhline(100 * whole, color="#8a8a8a", linestyle="--", linewidth=1)
    for method in METHODS:
        groups = grouped(found, method=method, batch=batch, epochs=epochs)
        if not groups:
            continue
        points = [
            [100 * statistics.mean(row[key] for row in group) for key in ("kept", "accuracy")]
            for group in groups.values()
        ]
        bars = [spread_of([row["accuracy"] for row in group]) for group in groups.values()]
        stream = method.endswith("-stream")
        color = COLORS.get(method) or PEER_COLORS[method.split("-")[1]]
        axes.errorbar(
            *zip(*points, strict=True),
            yerr=[100 * bar for bar in bars],
            color=color,
            marker="s" if method in PEERS else "o",
            markerfacecolor="white" if stream else color,
            linestyle=":" if stream else "-",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            label=method,
        )
    budget = f"fine-tuning epochs: {epochs}" if epochs else "not fine-tuned"
    axes.set_title(f"batch size {batch}, {budget}", fontsize=9)
    axes.set_xlabel("measured latency kept (%)")
    axes.set_ylabel("accuracy (%)")


def spread_of(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def the_task(chosen: argparse.Namespace, work: Path) -> Task:
    whole = gatepruner.load(chosen.checkpoint)
    normalize = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}  # as it was trained
    whole = replace(whole, notes={"normalize": normalize, **whole.notes})
    shape, spec = whole.network.base.input_shape, f"imagefolder:{chosen.data}"
    quick: bool = chosen.quick

    def images(split: str, limit: int | None = None) -> gatepruner.Images:
        return gatepruner.load_images(spec, shape, split=split, limit=limit)

    train = images("train", 256 if quick else None)
    held_out = tuple(images(split, 100 if quick else None) for split in ("val", "test"))
    return Task(
        whole,
        gating=train.spread(64 if quick else GATING),
        recalibration=train.spread(64 if quick else RECALIBRATION),
        train=train.spread(chosen.limit or (200 if quick else None)),
        held_out=held_out,
        device=chosen.device,
        work=work,
        quick=quick,
    )


def settings_of(task: Task, chosen: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on; a folder of work holds those of one such setting."""
    hardware = record.hardware()
    return {
        "checkpoint": f"{Path(chosen.checkpoint).name} {task.whole.fingerprint[:12]}",
        "device": task.device,
        "device_name": (
            torch.cuda.get_device_name() if task.device.startswith("cuda") else hardware["cpu"]
        ),
        "threads": hardware["threads"],
        "images_trained_on": len(task.train),
        "images_gates": len(task.gating),
        "images_recalibration": len(task.recalibration),
        "images_held_out": sum(map(len, task.held_out)),
        "gate_steps": task.gate_recipe.warmup + len(removable(task.whole)) * task.gate_recipe.steps,
        "torch_pruning": importlib.metadata.version("torch-pruning"),
        "torch_pruning_steps": task.tp_steps,
        "torch": torch.__version__,
    }


def listing(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


def the_options() -> argparse.Namespace:
    options = record.parser(__doc__)
    options.add_argument("--data", required=True, help="image folder with train, val and test")
    options.add_argument("--checkpoint", default=CHECKPOINT, help="the trained network")
    options.add_argument("--device", default="cpu", help="where to compute and to measure")
    options.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    options.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options.add_argument("--limit", type=int, help="training images to fine-tune on, not all")
    options.add_argument("--methods", type=listing(str), default=list(METHODS))
    options.add_argument("--shares", type=listing(int), default=[80, 65, 50, 35], help="in %%")
    options.add_argument("--batches", type=listing(int), default=[1, 128], help="batch sizes")
    options.add_argument("--work", type=Path, help="folder of unfinished work")
    options.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    chosen = options.parse_args()
    unknown = [name for name in chosen.methods if name not in METHODS]
    if unknown:
        options.error(f"unknown methods {', '.join(unknown)}: expected {', '.join(METHODS)}")
    if chosen.epochs < 1:
        options.error("--epochs: expected at least 1; 0 epochs are always in the result")
    chosen.methods.sort(key=METHODS.index)
    return chosen


def main() -> None:
    chosen = the_options()
    stem = record.folder(chosen.quick) / NAME
    work = chosen.work or stem.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    task = the_task(chosen, work)
    settings = settings_of(task, chosen)
    store = Store(work / f"{NAME}.cells.jsonl", settings)
    if not chosen.collect:
        carry_out(task, store, chosen)
    found = list(rows(store, chosen))
    if not found:
        sys.exit("nothing is finished yet")
    whole = store.found["whole",]
    more = {
        "epochs": chosen.epochs,
        "epochs_scratch": task.scratch_epochs(chosen.epochs),
        "seeds": chosen.seeds,
        "whole_accuracy": round(whole["accuracy"], 4),
        "whole_macs": whole["macs"],
        "whole_params": whole["params"],
    }
    record.write(NAME, {**settings, **more}, found, quick=chosen.quick)
    draw(found, whole["accuracy"], stem)


if __name__ == "__main__":
    main()
