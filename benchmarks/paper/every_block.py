"""Experiment 5: what branch and shortcut of every block of a 24-layer gated network are worth.

Claims: gates are lowest in blocks 1, 5 and 9, which raise the dimension, so that their
projections do the work; the gate is highest in the last block, whose shortcut can be removed at
almost no loss.

The first network is kept as `results/paper_every_block.safetensors`.

usage: python benchmarks/paper/every_block.py --data imagefolder:DIR
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import convolutional
import experiment
import record

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

NOTHING, NAMED = "nothing", ("branches of 1, 5, 9", "shortcut of the last")


def plans(network: gatepruner.Network) -> dict[str, gatepruner.Network]:
    """What is left after everything that is removed, by what that is."""
    names = [block.name for block in network.blocks]
    raising = [block.name for block in network.blocks if not block.identity]
    found = {NOTHING: network}
    found[NAMED[0]] = network.without(raising)
    found[NAMED[1]] = network.without_shortcuts(names[-1:])
    for number, name in enumerate(names, 1):
        found[f"branch of {number}"] = network.without([name])
        found[f"shortcut of {number}"] = network.without_shortcuts([name])
    return found


def recalibrated(
    checkpoint: gatepruner.Checkpoint, statistics: gatepruner.Images, device: str
) -> Iterator[tuple[str, gatepruner.Checkpoint]]:
    """What the claims are about, with statistics of batch norm estimated anew."""
    blocks = checkpoint.network.blocks
    raising = [block.name for block in blocks if not block.identity]
    for plan, small in (
        (NOTHING, checkpoint),
        (NAMED[0], gatepruner.remove(checkpoint, raising)),
        (NAMED[1], gatepruner.remove_shortcuts(checkpoint, [blocks[-1].name])),
    ):
        yield plan, gatepruner.recalibrate(small, statistics, device=device)


def main() -> None:
    chosen = convolutional.parser(__doc__).parse_args()
    trained, networks = convolutional.trained(chosen, convolutional.TWELVE_BLOCKS, chosen.seeds)
    test, statistics = convolutional.unseen(chosen), experiment.loaded(chosen.data, "train", 2000)
    rows: list[dict[str, Any]] = []
    for row, checkpoint in zip(trained, networks, strict=True):
        left = plans(checkpoint.network)
        found = gatepruner.accuracies(checkpoint, list(left.values()), test, device=chosen.device)
        without = {plan: it.to_json() for plan, it in zip(left, found, strict=True)}
        settled = {
            plan: gatepruner.accuracy(it, test, device=chosen.device).to_json()
            for plan, it in recalibrated(checkpoint, statistics, chosen.device)
        }
        rows.append({**row, "without": without, "recalibrated": settled})
        print(f"seed {row['seed']}: {without[NAMED[0]]}, {without[NAMED[1]]}", flush=True)
    folder, first = record.folder(chosen.quick), networks[0]
    settings = {
        "network": convolutional.TWELVE_BLOCKS,
        **experiment.described(convolutional.RECIPE),
        "epochs": chosen.epochs,
        "seeds": chosen.seeds,
        "images": len(test),
        "images for recalibration": len(statistics),
        "parameters": gatepruner.count(first.network).params,
        "MACs": gatepruner.count(first.network).macs,
    }
    record.write("paper_every_block", settings, rows, quick=chosen.quick)
    gatepruner.save(first, folder / "paper_every_block.safetensors", force=True)
    blocks = range(1, len(first.network.blocks) + 1)
    gates = Curves("gate", blocks, [row["gates"] for row in rows])
    drawn = comparison_figure([gates], "block, in order of depth", "gate g = ReLU(k)", height=2.8)
    save_figure(drawn, folder / "paper_every_block")


if __name__ == "__main__":
    main()
