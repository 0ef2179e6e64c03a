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

import record
from recovery import Bench, Trial

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
    recipe = replace(gatepruner.FINE_TUNING, batch_size=chosen.batch_size)
    gating = gatepruner.GateRecipe(blocks=16, steps=2 if chosen.quick else 50)
    bench = Bench.of(chosen, "much_data", recipe, gating)
    bench.write("much_data", chosen, trials(chosen), images=chosen.images)


if __name__ == "__main__":
    main()
