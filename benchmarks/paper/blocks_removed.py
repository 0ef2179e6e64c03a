"""Experiment 6: accuracy against blocks removed, gated convolutional networks from scratch.

The network of experiment 5, and a gated ResNet-56; in order of their gates and at random.

usage: python benchmarks/paper/blocks_removed.py --data imagefolder:DIR
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import experiment
import record
import removal
from convolutional import RECIPE, RESNET56, TWELVE_BLOCKS, parser, trained


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--large", type=int, default=1, help="networks of the larger kind")
    options.add_argument("--orders", type=int, default=10, help="random ones, for each network")
    chosen = options.parse_args()
    test = experiment.unseen(chosen.data, 200 if chosen.quick else None)
    rows: list[dict[str, Any]] = []
    for network, name, seeds, step in (
        (TWELVE_BLOCKS, "twelve_blocks", chosen.seeds, 1),
        (RESNET56, "resnet56", chosen.large, 3),
    ):
        curves = []
        for row, checkpoint in zip(*trained(chosen, network, seeds), strict=True):
            counts = range(0, len(checkpoint.network.blocks) + 1, step)
            found = removal.measured(checkpoint, test, counts, chosen.orders, chosen.device)
            curves += [{"kind": network, "seed": row["seed"], **one} for one in found]
            curves[-1]["gates"] = row["gates"]
        stem = record.folder(chosen.quick) / f"paper_blocks_removed_{name}"
        removal.draw(curves, "blocks", len(test), stem)
        rows += curves
    recipe = replace(RECIPE, epochs=chosen.epochs)
    more = {"large": chosen.large, "random orders": chosen.orders, "images": len(test)}
    experiment.write("paper_blocks_removed", chosen, recipe, rows, more)


if __name__ == "__main__":
    main()
