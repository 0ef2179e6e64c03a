"""Settings that the paper's abstract leaves open, for the gated convolutional networks.

Tried briefly on the network of 12 blocks and counted on training images that were held out. What
is chosen from it is `convolutional.RECIPE`.

usage: python benchmarks/paper/cifar_trials.py --data imagefolder:DIR
"""

from __future__ import annotations

from typing import Any

import convolutional
import experiment
import record

import gatepruner

SETTINGS: dict[str, dict[str, Any]] = {
    "k 0.01": {"gate_learning_rate": 0.01},
    "k 0.05": {"gate_learning_rate": 0.05},
    "k 0.1": {"gate_learning_rate": 0.1},
    "k 0.05, from 0.1": {"gate_learning_rate": 0.05, "initial_gate": 0.1},
    "k 0.1, penalty 0.001": {"gate_learning_rate": 0.1, "gate_penalty": 0.001},
    "k 0.1, weight decay 0.001": {"gate_learning_rate": 0.1, "weight_decay": 0.001},
}


def main() -> None:
    options = experiment.parser(__doc__, convolutional.DATA)
    options.add_argument("--epochs", type=int, default=5, help="of each trial")
    options.add_argument("--limit", type=int, default=12_000, help="training images")
    chosen = options.parse_args()
    epochs, limit = (1, 512) if chosen.quick else (chosen.epochs, chosen.limit)
    network = convolutional.TWELVE_BLOCKS
    jobs = [
        experiment.Job(
            network, gatepruner.Recipe(epochs=epochs, **setting), chosen.data, limit, limit // 6
        )
        for setting in SETTINGS.values()
    ]
    found = experiment.train(jobs, experiment.work(chosen.quick), device=chosen.device)
    rows = [{"setting": name, **row} for name, row in zip(SETTINGS, found, strict=True)]
    settings = {
        "network": network,
        "epochs": epochs,
        "training images": limit - limit // 6,
        "seed": 0,
        "measured on": "held-out training images",
    }
    record.write("paper_cifar_trials", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
