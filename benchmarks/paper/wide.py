"""Experiment 7: wide gated residual networks against wide residual ones, the same recipe for both.

Claim: WRN-28-10 with gates and dropout errs on 3.65 % of CIFAR-10 and 18.27 % of CIFAR-100. For
that a GPU is needed, half a day for each network, and the whole training set:

    python benchmarks/paper/wide.py --data cifar10:DIR --network wrn-28-10,dropout=0.3 \\
        --epochs 200 --schedule step --device cuda
    python benchmarks/paper/wide.py --data cifar100:DIR --network wrn-28-10,dropout=0.3 \\
        --epochs 200 --schedule step --device cuda

usage: python benchmarks/paper/wide.py --data imagefolder:DIR
"""

from __future__ import annotations

import re
from dataclasses import replace

import convolutional
import experiment

import gatepruner


def main() -> None:
    options = experiment.parser(__doc__, f"{convolutional.DATA}, cifar10:DIR, cifar100:DIR")
    options.add_argument("--network", default="wrn-16-4", help="without gates")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--schedule", default=convolutional.RECIPE.schedule)
    chosen = options.parse_args()
    epochs, limit = (1, 256) if chosen.quick else (chosen.epochs, None)
    recipe = replace(convolutional.RECIPE, epochs=epochs, schedule=chosen.schedule)
    jobs = [
        experiment.Job(f"{prefix}{chosen.network}", replace(recipe, seed=seed), chosen.data, limit)
        for seed in range(chosen.seeds)
        for prefix in ("", "gated-")
    ]
    rows = experiment.train(jobs, chosen)
    cost = gatepruner.count(gatepruner.Network.named(chosen.network))
    more = {"images": experiment.tested(rows), "parameters": cost.params, "MACs": cost.macs}
    kind = chosen.data.partition(":")[0].replace("imagefolder", "cifar10")
    name = re.sub(r"\W+", "_", f"paper_wide_{chosen.network}_{kind}")
    more |= {"network": chosen.network, "device": chosen.device}
    experiment.write(name, chosen, recipe, rows, more)


if __name__ == "__main__":
    main()
