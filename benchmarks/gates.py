"""Blocks removed from a trained network along the path of its gates, and in other orders.

No convolution and no linear weight is trained. Compared are, on test images that nothing was
chosen on:

- gates: the path of `learn_gates` (gates, scales and shifts of batch norm), several seeds;
- gates, order alone: the same order, with the network's own weights;
- the orders of other criteria (`--by`), random ones with several seeds. Greedy leave-one-out
  removes the block without which the cross-entropy on training images is lowest, again and again.

Every network has its statistics estimated anew. All take their training images from the same
10,000. The time of an order is that of finding it and of estimating statistics for its networks.

usage: python benchmarks/gates.py --checkpoint FILE --data DIR
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import record
import torch
from columns import grouped

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.figures import save_figure

STATISTICS = 2000  # training images that statistics are estimated on
COUNTS = (1, 2, 3, 5, 8, 10, 13)  # removals that are measured
CANDIDATES = 1000  # training images that criteria compare on
Smaller = Callable[[Sequence[str]], gatepruner.Checkpoint]


def orders(
    whole: gatepruner.Checkpoint, train: gatepruner.Images, chosen: argparse.Namespace
) -> Iterator[tuple[str, int, float, gatepruner.Ranking, Smaller]]:
    """Method, seed, seconds that it took, its order, and what removes blocks in that order."""
    for seed in range(chosen.seeds):
        recipe = gatepruner.GateRecipe(
            blocks=chosen.blocks, steps=2 if chosen.quick else 50, seed=seed
        )
        start = time.perf_counter()
        gated = gatepruner.learn_gates(whole, train, recipe, device="cpu")
        seconds, order = time.perf_counter() - start, gatepruner.rank(gated)
        yield "gates", seed, seconds, order, partial(gatepruner.follow, gated)
        yield "gates, order alone", seed, seconds, order, partial(gatepruner.remove, whole)
    for by in chosen.by:
        for seed in range(chosen.seeds if by == "random" else 1):
            start = time.perf_counter()
            images = train.spread(CANDIDATES)
            order = gatepruner.rank(whole, by, images, seed=seed, device="cpu")
            seconds = time.perf_counter() - start
            yield by, seed, seconds, order, partial(gatepruner.remove, whole)


def figure(whole: float, rows: list[dict[str, Any]], images: int) -> Any:
    """Accuracy against blocks removed, mean and range over the seeds of each method."""
    curves = []
    for method, found in grouped(rows, itemgetter("method")).items():
        x = sorted({row["removed"] for row in found})
        runs = [
            [100 * whole, *(100 * row["accuracy"] for row in run)]
            for run in grouped(found, itemgetter("seed")).values()
        ]
        curves.append(Curves(method, [0, *x], runs))
    label = f"top-1 accuracy (%), n = {images:,}"
    return comparison_figure(curves, "blocks removed", label, marked=False)


def main() -> None:
    options = record.parser(__doc__, "train and test")
    options.add_argument("--blocks", type=int, default=13, help="blocks to remove")
    options.add_argument("--seeds", type=int, default=3, help="of the gates, and random orders")
    options.add_argument("--images", type=int, default=10_000, help="training images")
    options.add_argument("--by", nargs="*", default=["random", "greedy"], help="other criteria")
    chosen = options.parse_args()
    chosen.blocks = 3 if chosen.quick else chosen.blocks
    limits = {"train": 256, "test": 100} if chosen.quick else {"train": chosen.images, "test": None}
    whole, train, test = record.loaded(chosen, **limits)
    start, statistics = gatepruner.accuracy(whole, test, device="cpu"), train.spread(STATISTICS)
    rows = []
    for method, seed, seconds, order, smaller in orders(whole, train, chosen):
        for removed in (count for count in COUNTS if count <= chosen.blocks):
            began = time.perf_counter()
            small = gatepruner.fold_gates(smaller(order.first(removed)))
            small = gatepruner.recalibrate(small, statistics, device="cpu")
            seconds += time.perf_counter() - began
            accuracy = gatepruner.accuracy(small, test, device="cpu").to_json()
            row = {"method": method, "seed": seed, "removed": removed, "seconds": seconds}
            rows.append({**row, **accuracy})
            print(rows[-1], flush=True)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "training images": len(train),
        "test images": len(test),
        "whole": start.accuracy,
        "images for statistics": len(statistics),
        "images for other criteria": CANDIDATES,
        "threads": torch.get_num_threads(),
    }
    record.write("gates", settings, rows, quick=chosen.quick)
    drawn = figure(start.accuracy, rows, len(test))
    save_figure(drawn, record.folder(chosen.quick) / "gates")


if __name__ == "__main__":
    main()
