"""Experiment 6: accuracy against blocks removed, gated convolutional networks from scratch.

The network of experiment 5, and a gated ResNet-56; in order of their gates and at random.

usage: python benchmarks/paper/blocks_removed.py --data imagefolder:DIR
"""

from __future__ import annotations

import convolutional
import experiment
import record
import removal

from gatepruner.report.style import save_figure

SHOWN = {convolutional.TWELVE_BLOCKS: "twelve_blocks", convolutional.RESNET56: "resnet56"}


def main() -> None:
    options = convolutional.parser(__doc__)
    options.add_argument("--large", type=int, default=1, help="networks of the larger kind")
    options.add_argument("--orders", type=int, default=10, help="random ones, for each network")
    chosen = options.parse_args()
    test, rows = convolutional.unseen(chosen), []
    seeds = {convolutional.TWELVE_BLOCKS: chosen.seeds, convolutional.RESNET56: chosen.large}
    for network, shown in SHOWN.items():
        trained, checkpoints = convolutional.trained(chosen, network, seeds[network])
        found = []
        for seed, checkpoint in enumerate(checkpoints):
            blocks = len(checkpoint.network.blocks)
            counts = range(0, blocks + 1, 1 if blocks < 20 else 3)  # 12 and 27 blocks
            curves = removal.measured(checkpoint, test, counts, chosen.orders, chosen.device)
            found += [{"kind": network, "seed": seed, **row} for row in curves]
            found[-1]["gates"] = trained[seed]["gates"]
        drawn = removal.figure(found, len(test), 1, "blocks")
        save_figure(drawn, record.folder(chosen.quick) / f"paper_blocks_removed_{shown}")
        rows += found
    settings = {
        **experiment.described(convolutional.RECIPE),
        "epochs": chosen.epochs,
        "seeds": list(seeds.values()),
        "random orders": chosen.orders,
        "images": len(test),
    }
    record.write("paper_blocks_removed", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
