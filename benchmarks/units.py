"""Blocks, channels, or both on one path, at equal MACs; and Torch-Pruning's channels beside them.

All start from one trained CIFAR-10 ResNet-56 and go down a ladder of ever smaller networks. For
each target, a share of the whole network's MACs, the first one that is small enough is taken,
recalibrated, and fine-tuned for some steps with the whole network as teacher: by its last feature
map, or by its logits where that is narrower (-stream). Accuracy is counted on val and test together
before and after. Setting up the peers, and the rest of the task, is that of
`against_torch_pruning.py`.

blocks     a learned path of whole blocks
channels   a learned path of slices of 8 channels of the widths within blocks
both       a learned path of either, by importance per MAC that each saves when it is chosen
tp-...     Torch-Pruning's criteria, see `channels.py`

With --batches, latency is recorded beside MACs, measured in turns with the whole network.

Work is kept in `results/units.work/`: a rerun with the same settings goes on from there. The full
run takes an hour on a GPU (--device cuda). Under ten minutes on two cores of a CPU:

    python benchmarks/units.py --checkpoint FILE --data DIR --short --methods blocks channels both

usage: python benchmarks/units.py --checkpoint FILE --data DIR [--device cuda --steps 156 ...]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import against_torch_pruning as peers
import channels
import matplotlib
import record
import torch
from columns import grouped
from matplotlib.figure import Figure

import gatepruner
from gatepruner.images.normalization import IMAGENET
from gatepruner.pruning.groups import reduced
from gatepruner.report.style import STYLE, save_figure

NAME = "units"
OURS = {"blocks": "gatepruner", "channels": "channels", "both": "both"}  # and the peers' names
METHODS = (*OURS, *channels.METHODS)
COLORS = {"blocks": "#0b5fa5", "channels": "#c2185b", "both": "#222222", **peers.COLORS}
SHORT = gatepruner.GateRecipe(warmup=20, steps=8, batch_size=32)  # for a CPU


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


def pick(task: peers.Task, method: str, seed: int, share: int) -> dict[str, Any]:
    """The first network of a ladder that keeps at most a share (%) of the MACs."""
    steps, whole = peers.ladder(task, OURS.get(method, method), seed).steps, task.whole
    limit = share / 100 * gatepruner.count(whole).macs
    if macs_of(task, method, seed, steps) > limit:
        return {"number": None}
    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        small = macs_of(task, method, seed, middle) <= limit
        low, high = (low, middle) if small else (middle + 1, high)
    return {"number": low}


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
        images = task.train.spread(chosen.steps * chosen.batch_size)
        recipe = replace(
            gatepruner.FINE_TUNING, epochs=1, batch_size=chosen.batch_size, match=match, seed=seed
        )
        tuned = gatepruner.finetune(small, images, recipe, teacher=task.whole, device=task.device)
        after = peers.evaluated(task, tuned)
    return {
        "macs_kept": before["macs"] / gatepruner.count(task.whole).macs,
        "depth": small.network.depth,
        "accuracy_before": before["accuracy"],
        **after,
        "latency": {str(batch): latency(task, small, batch) for batch in chosen.batches},
        "path_seconds": peers.ladder(task, OURS.get(method, method), seed).seconds,
        "finetune_seconds": time.perf_counter() - start,
    }


def latency(task: peers.Task, small: gatepruner.Checkpoint, batch: int) -> dict[str, Any]:
    """Latency of a network and of the whole one, measured in turns."""
    both = {"whole": task.whole, "small": small}
    found = gatepruner.latency(both, batch=batch, device=task.device, seconds=task.seconds[1])
    times = {name: asdict(one) for name, one in found.items()}
    return {"kept": found["small"].median / found["whole"].median, **times}


def measured(task: peers.Task, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every method, seed and target; what is finished is not measured again."""
    for seed in range(chosen.seeds):
        for method in chosen.methods:
            for share in chosen.shares:
                name = f"{method}-{seed}-{share}-{chosen.steps}.json"

                def work(key: tuple[str, int, int] = (method, seed, share)) -> dict[str, Any]:
                    method, seed, share = key
                    picked = pick(task, method, seed, share)
                    reached = picked["number"] is not None
                    more = outcome(task, method, seed, picked["number"], chosen) if reached else {}
                    return {**picked, "reached": reached, **more}

                row = {"method": method, "seed": seed, "share": share}
                row |= record.once(task.work / name, work)
                print(row, flush=True)
                yield row


def draw(rows: list[dict[str, Any]], whole: float, stem: Path) -> None:
    """Accuracy against MACs kept, before and after fine-tuning."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for axes, key, title in zip(
            panels,
            ("accuracy_before", "accuracy"),
            ("recalibrated", "and then fine-tuned"),
            strict=True,
        ):
            axes.axhline(100 * whole, color="#8a8a8a", linestyle="--", linewidth=1)
            reached = [row for row in rows if row["reached"]]
            for method, own in grouped(reached, lambda row: row["method"]).items():
                stream = method.endswith("-stream")
                axes.plot(
                    [100 * row["macs_kept"] for row in own],
                    [100 * row[key] for row in own],
                    color=COLORS[method.removesuffix("-stream")],
                    linestyle=":" if stream else "-",
                    marker="o" if method in OURS else "s",
                    markersize=4,
                    linewidth=1.2,
                    label=method,
                )
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("MACs kept (%)")
            axes.set_ylabel("accuracy (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    save_figure(figure, stem)


def the_task(chosen: argparse.Namespace) -> peers.Task:
    limits: Mapping[str, int | None] = {"train": chosen.limit, "val": None, "test": None}
    if chosen.short:
        limits = {"train": 4000, "val": 1000, "test": 1000}
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
    few = gatepruner.GateRecipe(warmup=2, steps=1, batch_size=16)
    return replace(task, gate_recipe=few, tp_steps=20, seconds=(0.2, 0.5)) if chosen.quick else task


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--short", action="store_true", help="few images and steps, for a CPU")
    options.add_argument("--steps", type=int, default=156, help="of fine-tuning")
    options.add_argument("--batch-size", type=int, default=128, help="images per step of it")
    options.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options.add_argument("--limit", type=int, default=11_000, help="training images")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--shares", nargs="+", type=int, default=[75, 50, 35], help="in %%")
    options.add_argument("--batches", nargs="*", type=int, default=[], help="for latency")
    chosen = options.parse_args()
    if chosen.short:
        chosen.steps, chosen.batch_size = min(chosen.steps, 40), 32
    stem, task = record.folder(chosen.quick) / NAME, the_task(chosen)
    settings = {
        "checkpoint": f"{chosen.checkpoint.name} {task.whole.fingerprint[:12]}",
        "device": task.device,
        "threads": torch.get_num_threads(),
        "images_train": len(task.train),
        "images_gates": len(task.gating),
        "images_recalibration": len(task.recalibration),
        "images_held_out": len(task.held_out),
        "gates": asdict(task.gate_recipe),
        "finetuning": {"steps": chosen.steps, "batch_size": chosen.batch_size},
        "batches": chosen.batches,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    task = replace(task, work=stem.with_suffix(".work") / digest)
    task.work.mkdir(parents=True, exist_ok=True)
    whole = record.once(task.work / "whole.json", lambda: peers.evaluated(task, task.whole))
    rows = list(measured(task, chosen))
    more = {f"whole_{key}": round(whole[key], 4) for key in ("accuracy", "macs", "params")}
    record.write(NAME, {**settings, "seeds": chosen.seeds, **more}, rows, quick=chosen.quick)
    draw(rows, whole["accuracy"], stem)


if __name__ == "__main__":
    main()
