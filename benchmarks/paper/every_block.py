"""Experiment 5: what branch and shortcut of every block of a 24-layer gated network are worth.

Claims: gates are lowest in blocks 1, 5 and 9, which raise the dimension, so that their
projections do the work; the gate is highest in the last block, whose shortcut can be removed at
almost no loss.

The first network is kept as `results/paper_every_block.safetensors`.

usage: python benchmarks/paper/every_block.py --data imagefolder:DIR
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import experiment
import record
from convolutional import RECIPE, TWELVE_BLOCKS, parser, trained

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

BRANCHES, SHORTCUT = "branches of 1, 5, 9", "shortcut of the last"


def claimed(whole: gatepruner.Checkpoint) -> dict[str, gatepruner.Checkpoint]:
    """What the claims are about."""
    raising = [block.name for block in whole.network.blocks if not block.identity]
    last = whole.network.blocks[-1].name
    return {
        "nothing": whole,
        BRANCHES: gatepruner.remove(whole, raising),
        SHORTCUT: gatepruner.remove_shortcuts(whole, [last]),
    }


def plans(whole: gatepruner.Checkpoint) -> dict[str, gatepruner.Network]:
    """What is left after every removal, by what is removed."""
    left = {plan: small.network for plan, small in claimed(whole).items()}
    for number, block in enumerate(whole.network.blocks, 1):
        left[f"branch of {number}"] = whole.network.without([block.name])
        left[f"shortcut of {number}"] = whole.network.without_shortcuts([block.name])
    return left


def main() -> None:
    chosen = parser(__doc__).parse_args()
    trainings, networks = trained(chosen, TWELVE_BLOCKS, chosen.seeds)
    test = experiment.unseen(chosen.data, 200 if chosen.quick else None)
    statistics = experiment.loaded(chosen.data, "train", 2000)
    how, rows = {"device": chosen.device}, []
    for row, whole in zip(trainings, networks, strict=True):
        left = plans(whole)
        found = gatepruner.accuracies(whole, list(left.values()), test, **how)
        without = {plan: one.to_json() for plan, one in zip(left, found, strict=True)}
        recalibrated: dict[str, Any] = {}
        for plan, small in claimed(whole).items():
            settled = gatepruner.recalibrate(small, statistics, **how)
            recalibrated[plan] = gatepruner.accuracy(settled, test, **how).to_json()
        rows.append({**row, "without": without, "recalibrated": recalibrated})
        print(f"seed {row['seed']}: {without[BRANCHES]}, {without[SHORTCUT]}", flush=True)
    cost = gatepruner.count(networks[0].network)
    numbers = {"images": len(test), "images for recalibration": len(statistics)}
    more = {"network": TWELVE_BLOCKS, **numbers, "parameters": cost.params, "MACs": cost.macs}
    recipe = replace(RECIPE, epochs=chosen.epochs)
    experiment.write("paper_every_block", chosen, recipe, rows, more)
    stem = record.folder(chosen.quick) / "paper_every_block"
    gatepruner.save(networks[0], stem.with_suffix(".safetensors"), force=True)
    blocks = range(1, len(networks[0].network.blocks) + 1)
    gates = Curves("gate", blocks, [row["gates"] for row in rows])
    figure = comparison_figure([gates], "block, in order of depth", "gate g = ReLU(k)", height=2.8)
    save_figure(figure, stem)


if __name__ == "__main__":
    main()
