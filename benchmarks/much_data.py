"""Recovery with all training images and many epochs: which loss wins, over seeds.

As `recovery.py`, whose trials see half of the images for two epochs. A seed decides what the gates
learn from, and thereby the order of removal, and the batches of recovery.

The trials are independent of each other: start the script once for every part of them
(`--match`, `--removed`, `--seeds`), then once for all, which writes the result.

usage: python benchmarks/much_data.py --checkpoint FILE --data DIR [--device cuda]
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import Any

import record
from recovery import Bench, Trial, draw

import gatepruner


def trials(chosen: argparse.Namespace) -> list[Trial]:
    """Every loss with every number of blocks and every seed."""
    return [
        Trial(removed, match, "gates", "gates by logits", seed, chosen.images, chosen.epochs)
        for removed, match, seed in itertools.product(chosen.removed, chosen.match, chosen.seeds)
    ]


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--images", type=int, default=40_000, help="to learn from")
    options.add_argument("--epochs", type=int, default=8, help="of recovery")
    options.add_argument("--batch-size", type=int, default=128, help="of recovery")
    options.add_argument("--removed", type=int, nargs="+", default=[13, 16], help="blocks")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    losses = ["none", "labels", "logits", "both", "features"]
    options.add_argument("--match", nargs="+", default=losses, help="losses")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.images, chosen.epochs, chosen.removed, chosen.seeds = 256, 1, [2, 3], [0]
    most = 100 if chosen.quick else None
    whole, train, val, test = record.loaded(chosen, train=None, val=most, test=most)
    bench = Bench(
        whole,
        train,
        val.joined(test),
        record.folder(chosen.quick) / "much_data.work",
        replace(gatepruner.FINE_TUNING, batch_size=chosen.batch_size),
        gatepruner.GateRecipe(blocks=16, steps=2 if chosen.quick else 50),
        chosen.device,
    )
    rows = bench.run(trials(chosen))
    settings: dict[str, Any] = {
        "checkpoint": chosen.checkpoint.name,
        "whole": round(gatepruner.accuracy(whole, bench.test, device=chosen.device).accuracy, 4),
        "images": chosen.images,
        "test images": len(bench.test),
        "learning rate": bench.recipe.peak(fresh=False),
        "batch size": bench.recipe.batch_size,
    }
    record.write("much_data", settings, rows, quick=chosen.quick)
    draw(rows, settings["whole"], record.folder(chosen.quick) / "much_data")


if __name__ == "__main__":
    main()
