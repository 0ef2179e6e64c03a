"""Blocks removed from a trained network along the path of its gates, and in other orders.

No convolution and no linear weight is trained. Compared are, on test images that nothing was
chosen on:

- gates: the path of `learn_gates` (gates, scales and shifts of batch norm), each state with its
  statistics estimated anew; several seeds;
- gates, order alone: the same order, the network's own weights, statistics estimated anew;
- leave-one-out: greedy, the block without which the cross-entropy on training images is lowest
  goes first, statistics are estimated anew after every removal;
- random: orders drawn at random, statistics estimated anew.

All take their training images from the same 10,000. The time of an order is that of finding it
and of estimating statistics for each of its networks.

usage: python benchmarks/gates.py --checkpoint FILE --data DIR
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record
import torch
from matplotlib.figure import Figure

import gatepruner
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.inputs import normalization_of
from gatepruner.measuring.merging import merged
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

STATISTICS = 2000  # training images that statistics are estimated on
COUNTS = (1, 2, 3, 5, 8, 10, 13)  # removals that are measured
CANDIDATES = 1000  # training images that leave-one-out compares on
Found = Iterator[tuple[int, gatepruner.Checkpoint]]


def learned(
    whole: gatepruner.Checkpoint, train: gatepruner.Images, blocks: int, seed: int, steps: int
) -> gatepruner.Checkpoint:
    """The whole network with its path."""
    recipe = gatepruner.GateRecipe(blocks=blocks, steps=steps, seed=seed)
    return gatepruner.learn_gates(whole, train, recipe, device="cpu")


def along(gated: gatepruner.Checkpoint, blocks: int) -> Found:
    """The networks of a path."""
    ranking = gatepruner.rank(gated)
    for removed in range(1, blocks + 1):
        small = gatepruner.follow(gated, ranking.first(removed))
        yield removed, gatepruner.fold_gates(small)


def without(whole: gatepruner.Checkpoint, order: list[str]) -> Found:
    """The networks of an order, with the whole one's weights."""
    for removed in range(1, len(order) + 1):
        yield removed, gatepruner.remove(whole, order[:removed])


def left_out(whole: gatepruner.Checkpoint, train: gatepruner.Images, blocks: int) -> Found:
    """The networks of greedy leave-one-out; all candidates of a removal share one pass."""
    images = train.spread(CANDIDATES)
    chosen = normalization_of(whole.notes, images.shape[0])
    small = whole
    for removed in range(1, blocks + 1):
        names = [block.name for block in small.network.blocks if block.removable]
        heads = merged(small, [small.network.without([name]) for name in names])
        found = tally(heads, images, chosen, "cpu", 128)
        best = min(range(len(names)), key=lambda index: found[index].loss)
        small = gatepruner.remove(small, [names[best]])
        small = gatepruner.recalibrate(small, train.spread(STATISTICS), device="cpu")
        yield removed, small


def measured(
    method: str,
    seed: int,
    networks: Found,
    test: gatepruner.Images,
    statistics: gatepruner.Images | None,
    before: float = 0.0,
) -> list[dict[str, Any]]:
    """A row for every network; `before` is what its order took to find."""
    rows, spent = [], before
    start = time.perf_counter()
    for removed, network in networks:
        if removed not in COUNTS:
            continue
        if statistics is not None:
            network = gatepruner.recalibrate(network, statistics, device="cpu")
        spent += time.perf_counter() - start
        found = gatepruner.accuracy(network, test, device="cpu").to_json()
        row = {"method": method, "seed": seed, "removed": removed, "seconds": spent, **found}
        rows.append(row)
        print(
            f"{method} {seed}: {removed} removed, {100 * row['accuracy']:.1f} %, {spent:.0f} s",
            flush=True,
        )
        start = time.perf_counter()
    return rows


def figure(whole: float, rows: list[dict[str, Any]], images: int) -> Figure:
    """Accuracy against blocks removed, mean and range over the seeds of each method."""
    kinds = []
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        x = sorted({row["removed"] for row in found})
        runs = [
            [100 * whole, *(100 * row["accuracy"] for row in found if row["seed"] == seed)]
            for seed in dict.fromkeys(row["seed"] for row in found)
        ]
        kinds.append(Curves(method, [0, *x], runs))
    label = f"top-1 accuracy (%), n = {images:,}"
    return comparison_figure(kinds, "blocks removed", label, marked=False)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--checkpoint", required=True, type=Path, help="a trained ResNet")
    options.add_argument("--data", required=True, help="folder with train/CLASS and test/CLASS")
    options.add_argument("--blocks", type=int, default=13, help="blocks to remove")
    options.add_argument("--seeds", type=int, default=3, help="of the gates, and random orders")
    options.add_argument("--images", type=int, default=10_000, help="training images")
    chosen = options.parse_args()
    limit, blocks, steps = (256, 3, 2) if chosen.quick else (chosen.images, chosen.blocks, 50)
    whole = gatepruner.load(chosen.checkpoint)
    shape, spec = whole.network.base.input_shape, f"imagefolder:{chosen.data}"
    train = gatepruner.load_images(spec, shape, split="train", limit=limit)
    test = gatepruner.load_images(spec, shape, limit=100 if chosen.quick else None)
    start = gatepruner.accuracy(whole, test, device="cpu")
    statistics = train.spread(STATISTICS)
    rows = []
    for seed in range(chosen.seeds):
        began = time.perf_counter()
        gated = learned(whole, train, blocks, seed, steps)
        spent = time.perf_counter() - began
        rows += measured("gates", seed, along(gated, blocks), test, statistics, spent)
        order = list(gatepruner.rank(gated).first(blocks))
        alone = without(whole, order)
        rows += measured("gates, order alone", seed, alone, test, statistics, spent)
    for seed in range(chosen.seeds):
        order = list(gatepruner.rank(whole, "random", seed=seed).first(blocks))
        rows += measured("random", seed, without(whole, order), test, statistics)
    rows += measured("leave-one-out", 0, left_out(whole, train, blocks), test, None)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "training images": len(train),
        "test images": len(test),
        "whole": start.accuracy,
        "images for statistics": len(statistics),
        "images for leave-one-out": CANDIDATES,
        "threads": torch.get_num_threads(),
    }
    record.write("gates", settings, rows, quick=chosen.quick)
    save_figure(figure(start.accuracy, rows, len(test)), record.folder(chosen.quick) / "gates")


if __name__ == "__main__":
    main()
