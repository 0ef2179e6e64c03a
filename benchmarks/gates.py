"""Blocks removed from a trained network along the path of its gates, and in other orders.

No convolution and no linear weight is trained. Compared are, on test images that nothing was
chosen on:

- gates: the path of `learn_gates` (gates, scales and shifts of batch norm), several seeds;
- gates, order alone: the same order, with the network's own weights;
- the orders of other criteria (`--by`), random ones with several seeds. Greedy leave-one-out
  removes the block without which the cross-entropy on training images is lowest, again and again.

Every network has its statistics estimated anew. All take their training images from the same
10,000. The time is that of finding the order.

usage: python benchmarks/gates.py --checkpoint FILE --data DIR
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import record
import torch
from columns import grouped

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

STATISTICS = 2000  # training images that statistics are estimated on
COUNTS = (1, 2, 3, 5, 8, 10, 13)  # removals that are measured
CANDIDATES = 1000  # training images that criteria compare on


def rows_of(
    method: str, seed: int, seconds: float, points: Iterable[gatepruner.Point]
) -> list[dict[str, Any]]:
    """A row for every point of a curve."""
    named = {"method": method, "seed": seed, "seconds": seconds}
    rows = [{**named, "removed": point.removed, **point.accuracy.to_json()} for point in points]
    print(method, seed, [round(100 * row["accuracy"], 1) for row in rows], flush=True)
    return rows


def curves(whole: float, rows: Sequence[dict[str, Any]]) -> list[Curves]:
    """Accuracy (%) against blocks removed; a curve for every seed of every method."""
    kinds = []
    for method, found in grouped(rows, itemgetter("method")).items():
        x = sorted({row["removed"] for row in found})
        runs = [
            [100 * whole, *(100 * row["accuracy"] for row in run)]
            for run in grouped(found, itemgetter("seed")).values()
        ]
        kinds.append(Curves(method, [0, *x], runs))
    return kinds


def main() -> None:
    options = record.parser(__doc__, "train and test")
    options.add_argument("--blocks", type=int, default=13, help="blocks to remove")
    options.add_argument("--seeds", type=int, default=3, help="of the gates, and random orders")
    options.add_argument("--images", type=int, default=10_000, help="training images")
    options.add_argument("--by", nargs="*", default=["random", "greedy"], help="other criteria")
    chosen = options.parse_args()
    blocks, steps = (3, 2) if chosen.quick else (chosen.blocks, 50)
    limits = {"train": 256, "test": 100} if chosen.quick else {"train": chosen.images, "test": None}
    whole, train, test = record.loaded(chosen, **limits)
    counts = [count for count in COUNTS if count <= blocks]
    how: dict[str, Any] = {
        "statistics": train.spread(STATISTICS),
        "counts": counts,
        "device": chosen.device,
    }
    rows = []
    for seed in range(chosen.seeds):
        recipe, start = gatepruner.GateRecipe(blocks=blocks, steps=steps, seed=seed), time.time()
        gated = gatepruner.learn_gates(whole, train, recipe, device=chosen.device)
        seconds, order = time.time() - start, gatepruner.rank(gated)
        rows += rows_of("gates", seed, seconds, gatepruner.sweep(gated, test, order, **how))
        points = gatepruner.sweep(whole, test, replace(order, learned=False), **how)
        rows += rows_of("gates, order alone", seed, seconds, points)
    given = {"training": train.spread(CANDIDATES), "seeds": range(chosen.seeds)}
    for compared in gatepruner.compare(whole, test, chosen.by, **given, **how):
        for seed, points in enumerate(compared.runs):
            rows += rows_of(compared.criterion, seed, compared.seconds, points)
    accuracy = gatepruner.accuracy(whole, test, device=chosen.device).accuracy
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "training images": len(train),
        "test images": len(test),
        "whole": accuracy,
        "images for statistics": len(how["statistics"]),
        "images for other criteria": CANDIDATES,
        "threads": torch.get_num_threads(),
    }
    record.write("gates", settings, rows, quick=chosen.quick)
    label = f"top-1 accuracy (%), n = {len(test):,}"
    drawn = comparison_figure(curves(accuracy, rows), "blocks removed", label, marked=False)
    save_figure(drawn, record.folder(chosen.quick) / "gates")


if __name__ == "__main__":
    main()
