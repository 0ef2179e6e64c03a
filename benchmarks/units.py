"""Blocks, channels, or both on one path, at equal MACs or equal latency; and Torch-Pruning beside.

All start from one trained CIFAR-10 ResNet-56 and go down a ladder of ever smaller networks. For
each target, a share of the whole network's MACs or latency, the first one that is small enough is
taken, recalibrated, and fine-tuned for some steps with the whole network as teacher: by its last
feature map, or by its logits where that is narrower (-stream). Accuracy is counted on val and test
together before and after. Setting up the peers, and the rest of the task, is that of
`against_torch_pruning.py`.

blocks     a learned path of whole blocks
channels   a learned path of slices of 8 channels of the widths within blocks
both       a learned path of either, by importance per saving when it is chosen
tp-...     Torch-Pruning's criteria, see `channels.py`

With --target macs, what units save are MACs; latencies on the engines and at the batch sizes that
are named are recorded beside. With --target latency, there is a target for every engine and batch
size, and what units save is that latency. It is always measured in turns with the whole network.

Work is kept in `results/units.work/`: a rerun with the same settings goes on from there, also with
more engines, batch sizes, methods or shares. So measure one target after the other, and name all of
them in the last run, which writes the result. The full run takes an hour on a GPU (--device cuda).
Under ten minutes for a target on two idle cores of a CPU:

    python benchmarks/units.py --checkpoint FILE --data DIR --short --methods blocks channels both
    (the same) --target latency --engines onnxruntime --batches 1

usage: python benchmarks/units.py --checkpoint FILE --data DIR [--device cuda --steps 156 ...]
"""

from __future__ import annotations

import argparse
import bisect
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import against_torch_pruning as peers
import channels
import matplotlib
import record
import torch
from columns import grouped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gatepruner
from gatepruner.images.normalization import IMAGENET
from gatepruner.measuring.engines import ENGINES
from gatepruner.pruning.groups import reduced
from gatepruner.report.style import STYLE, save_figure

NAME = "units"
OURS = {"blocks": "gatepruner", "channels": "channels", "both": "both"}  # and the peers' names
METHODS = (*OURS, *channels.METHODS)
COLORS = {"blocks": "#0b5fa5", "channels": "#c2185b", "both": "#222222", **peers.COLORS}
SHORT = gatepruner.GateRecipe(warmup=20, steps=8, batch_size=32)  # for a CPU


@dataclass(frozen=True)
class Target:
    """What the networks that are compared have in common.

    Attributes:
        share: of the whole network's cost that they keep at most, in percent.
        engine: on which they keep that share of the latency; without one, of the MACs.
        batch: images per pass when latency is measured.
    """

    share: int
    engine: str = ""
    batch: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, (self.share, self.engine, self.batch)[: 3 if self.engine else 1]))

    @property
    def fields(self) -> dict[str, Any]:
        """What a row says of it."""
        place = {"engine": self.engine, "batch": self.batch} if self.engine else {}
        return {**place, "share": self.share}


@functools.cache
def task_for(task: peers.Task, method: str, engine: str, batch: int) -> peers.Task:
    """The task of a method at targets of latency; our paths are learned for each of them."""
    timed = replace(task, engine=engine)
    if method not in OURS:
        return timed
    recipe = replace(task.gate_recipe, cost="latency", engine=engine, latency_batch=batch)
    work = task.work / f"{engine}-{batch}"
    work.mkdir(exist_ok=True)
    return replace(timed, gate_recipe=recipe, work=work)


def macs_of(task: peers.Task, method: str, seed: int, number: int) -> int:
    """The MACs of a network of a ladder; of ours, without cutting any weight."""
    if method in OURS:
        plan = path_of(task, method, seed).blocks[:number]
        return gatepruner.count(reduced(task.whole.network.with_gates(), plan)).macs
    return gatepruner.count(peers.ladder(task, method, seed).at(number)).macs


@functools.cache
def path_of(task: peers.Task, method: str, seed: int) -> gatepruner.Path:
    peers.ladder(task, OURS[method], seed)  # learns the path, unless it was
    units = peers.UNITS[OURS[method]]
    name = f"gates-{seed}.pt" if units == "blocks" else f"{units}-{seed}.pt"
    return gatepruner.load(task.work / name).path


def pick(task: peers.Task, method: str, seed: int, target: Target) -> dict[str, Any]:
    """The first network of a ladder that keeps at most what the target says."""
    if target.engine:
        return peers.pick(task, OURS.get(method, method), seed, target.batch, target.share)
    steps = peers.ladder(task, OURS.get(method, method), seed).steps
    limit = target.share / 100 * gatepruner.count(task.whole).macs
    return {"number": first_within(functools.partial(macs_of, task, method, seed), steps, limit)}


def first_within(cost: Callable[[int], float], last: int, limit: float) -> int | None:
    """The first number, from 0 to the last, whose cost is at most a limit; costs fall."""
    numbers = range(last + 1)
    first = bisect.bisect_left(numbers, True, key=lambda number: cost(number) <= limit)
    return first if first <= last else None


def outcome(
    task: peers.Task, method: str, seed: int, number: int, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy, cost and latency of one network, recalibrated and then fine-tuned."""
    small = peers.ladder(task, OURS.get(method, method), seed).at(number)
    small = gatepruner.recalibrate(small, task.recalibration, device=task.device)
    before, start = peers.evaluated(task, small), time.perf_counter()
    after = before
    if chosen.steps:
        match = "logits" if method.endswith("-stream") else gatepruner.FINE_TUNING.match
        batch = chosen.batch_size
        epochs = math.ceil(chosen.steps * batch / len(task.train))
        images = task.train.spread(chosen.steps // epochs * batch)
        recipe = replace(
            gatepruner.FINE_TUNING, epochs=epochs, batch_size=batch, match=match, seed=seed
        )
        tuned = gatepruner.finetune(small, images, recipe, teacher=task.whole, device=task.device)
        after = peers.evaluated(task, tuned)
    return {
        "macs_kept": before["macs"] / gatepruner.count(task.whole).macs,
        "depth": small.network.depth,
        "accuracy_before": before["accuracy"],
        **after,
        "path_seconds": peers.ladder(task, OURS.get(method, method), seed).seconds,
        "finetune_seconds": time.perf_counter() - start,
    }


def latencies(
    task: peers.Task, method: str, seed: int, number: int, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Latency of a network of a ladder beside the whole one's, on every engine, at every batch."""
    timed = {}
    for engine, batch in itertools.product(chosen.engines, chosen.batches):
        where, ours = replace(task, engine=engine), OURS.get(method, method)
        timed[f"{engine} {batch}"] = peers.timed(where, ours, seed, batch, number, task.seconds[1])
    return timed


def targets(chosen: argparse.Namespace) -> list[Target]:
    """All that networks are compared at."""
    if chosen.target == "macs":
        return [Target(share) for share in chosen.shares]
    every = itertools.product(chosen.engines, chosen.batches, chosen.shares)
    return [Target(share, engine, batch) for engine, batch, share in every]


def measured(task: peers.Task, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every target, method and seed; what is finished is not measured again."""
    every = itertools.product(range(chosen.seeds), chosen.methods, targets(chosen))
    for seed, method, target in every:

        def work(key: tuple[int, str, Target] = (seed, method, target)) -> dict[str, Any]:
            seed, method, target = key
            its = task_for(task, method, target.engine, target.batch) if target.engine else task
            picked = pick(its, method, seed, target)
            if picked["number"] is None:
                return {**picked, "reached": False}
            place = (its, method, seed, picked["number"], chosen)
            beside = {} if target.engine else {"latency": latencies(*place)}
            return {**picked, "reached": True, **outcome(*place), **beside}

        name = f"{method}-{seed}-{target}-{chosen.steps}.json"
        row = {"method": method, "seed": seed, **target.fields}
        row |= record.once(task.work / name, work)
        print(row, flush=True)
        yield row


STAGES = {"accuracy_before": "recalibrated", "accuracy": "and then fine-tuned"}


def draw(rows: list[dict[str, Any]], whole: float, stem: Path) -> None:
    """Accuracy against the cost kept, before and after fine-tuning; a row for each kind of cost."""
    kinds = grouped(rows, itemgetter("engine", "batch") if "engine" in rows[0] else lambda _: None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.4 + 2.8 * len(kinds)), layout="constrained")
        every = figure.subplots(len(kinds), len(STAGES), sharex=True, squeeze=False)
        for panels, (kind, own) in zip(every, kinds.items(), strict=True):
            for axes, (key, title) in zip(panels, STAGES.items(), strict=True):
                axes.axhline(100 * whole, color="#8a8a8a", linestyle="--", linewidth=1)
                draw_lines(axes, [row for row in own if row["reached"]], key)
                axes.set_title(title, fontsize=9)
                cost = f"{kind[0]}, batch size {kind[1]}: latency" if kind else "MACs"
                axes.set_xlabel(f"{cost} kept (%)")
                axes.set_ylabel("accuracy (%)")
        figure.legend(*every[0, 0].get_legend_handles_labels(), loc="outside right center")
    save_figure(figure, stem)


def draw_lines(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """A line for every method."""
    for method, own in grouped(rows, itemgetter("method")).items():
        axes.plot(
            [100 * row["kept" if "engine" in row else "macs_kept"] for row in own],
            [100 * row[key] for row in own],
            color=COLORS[method.removesuffix("-stream")],
            linestyle=":" if method.endswith("-stream") else "-",
            marker="o" if method in OURS else "s",
            markersize=4,
            linewidth=1.2,
            label=method,
        )


def the_task(chosen: argparse.Namespace) -> peers.Task:
    limits: dict[str, int | None] = {"train": chosen.limit, "val": None, "test": None}
    if chosen.short:
        limits["train"] = 4000
    if chosen.quick:
        limits = {"train": 256, "val": 100, "test": 100}
    whole, train, val, test = record.loaded(chosen, **limits)
    normalize = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}  # as it was trained
    task = peers.Task(
        replace(whole, notes={"normalize": normalize, **whole.notes}),
        gating=train.spread(peers.GATING),
        recalibration=train.spread(1000 if chosen.short else peers.RECALIBRATION),
        train=train,
        held_out=val.joined(test),
        device=chosen.device,
        work=record.folder(chosen.quick),
        gate_recipe=SHORT if chosen.short else peers.GATES,
    )
    task = replace(task, seconds=(1.0, 5.0)) if chosen.short else task
    few = gatepruner.GateRecipe(warmup=2, steps=1, batch_size=16)
    return replace(task, gate_recipe=few, tp_steps=20, seconds=(0.2, 0.5)) if chosen.quick else task


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--short", action="store_true", help="few images and steps, for a CPU")
    options.add_argument("--target", choices=("macs", "latency"), default="macs")
    options.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager"])
    options.add_argument("--steps", type=int, default=156, help="of fine-tuning")
    options.add_argument("--batch-size", type=int, default=128, help="images per step of it")
    options.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options.add_argument("--limit", type=int, default=11_000, help="training images")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--shares", nargs="+", type=int, default=[75, 50, 35], help="in %%")
    options.add_argument("--batches", nargs="*", type=int, default=[], help="for latency")
    chosen = options.parse_args()
    if chosen.short:
        chosen.batch_size = min(chosen.batch_size, 64)
    latency = chosen.target == "latency"
    if latency:
        chosen.batches = chosen.batches or [1, 128]
    rate = replace(gatepruner.FINE_TUNING, batch_size=chosen.batch_size).peak(fresh=False)
    name, task = f"{NAME}_latency" if latency else NAME, the_task(chosen)
    stem = record.folder(chosen.quick) / name
    settings = {
        "checkpoint": f"{chosen.checkpoint.name} {task.whole.fingerprint[:12]}",
        "device": task.device,
        "threads": torch.get_num_threads(),
        "images_train": len(task.train),
        "images_gates": len(task.gating),
        "images_recalibration": len(task.recalibration),
        "images_held_out": len(task.held_out),
        "gates": asdict(task.gate_recipe),
        "finetuning": {"steps": chosen.steps, "batch_size": chosen.batch_size, "rate": rate},
        **({"seconds": task.seconds} if latency else {"batches": chosen.batches}),
        **({"engines": chosen.engines} if chosen.batches and not latency else {}),
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    task = replace(task, work=stem.with_name(f"{NAME}.work") / digest)
    task.work.mkdir(parents=True, exist_ok=True)
    whole = record.once(task.work / "whole.json", lambda: peers.evaluated(task, task.whole))
    rows = list(measured(task, chosen))
    more = {f"whole_{key}": round(whole[key], 4) for key in ("accuracy", "macs", "params")}
    record.write(name, {**settings, "seeds": chosen.seeds, **more}, rows, quick=chosen.quick)
    draw(rows, whole["accuracy"], stem)


if __name__ == "__main__":
    main()
