"""Settings that the paper's abstract leaves open, for the fully-connected networks.

Every setting is tried on all five kinds of network, briefly, and counted on training images that
were held out. What is chosen from it is `fully_connected.RECIPE`, one recipe for all of them.

usage: python benchmarks/paper/mnist_trials.py --data mnist:DIR
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import experiment
import record
from fully_connected import KINDS

import gatepruner

SETTINGS: dict[str, dict[str, Any]] = {
    "Adam 0.001": {"learning_rate": 0.001},
    "Adam 0.004": {"learning_rate": 0.004},
    "Adam 0.01": {"learning_rate": 0.01},
    "Adam 0.004, weight decay 0.0001": {"learning_rate": 0.004, "weight_decay": 1e-4},
    "SGD 0.1": {"learning_rate": 0.1, "optimizer": "sgd"},
}
GATES: dict[str, dict[str, float]] = {
    "k as the weights": {},
    "k 0.01": {"gate_learning_rate": 0.01},
    "k 0.05": {"gate_learning_rate": 0.05},
    "k 0.01, from 0.1": {"gate_learning_rate": 0.01, "initial_gate": 0.1},
    "k 0.05, from 0.1": {"gate_learning_rate": 0.05, "initial_gate": 0.1},
}
HIGHWAY = {"": "", "bias -4": ",transform_bias=-4"}  # at which its transform gates start
DEPTHS = (10, 100)
FIXED = {"batch_size": 256, "weight_decay": 0.0, "augment": False, "optimizer": "adam"}


def jobs(
    data: str, depths: Sequence[int], epochs: int, limit: int | None
) -> dict[tuple[int, str, str], experiment.Job]:
    """All trials, by depth, kind of network and setting."""
    found = {}
    for depth, kind in itertools.product(depths, KINDS):
        for name, setting in SETTINGS.items():
            gates = GATES if kind.startswith("gated") and "decay" not in name else {"": {}}
            for gate, changes in gates.items():
                rates = {"gate_learning_rate": setting["learning_rate"], **changes}
                recipe = gatepruner.Recipe(**{**FIXED, **setting, **rates, "epochs": epochs})
                held_out = 5000 if limit is None else limit // 4
                for bias, argument in HIGHWAY.items() if kind == "highway" else [("", "")]:
                    text = f"{kind}-fc{depth}{argument}"
                    said = ", ".join(filter(None, (name, gate, bias)))
                    found[depth, kind, said] = experiment.Job(text, recipe, data, limit, held_out)
    return found


def main() -> None:
    options = experiment.parser(__doc__, "mnist:DIR")
    options.add_argument("--epochs", type=int, default=3, help="of each trial")
    chosen = options.parse_args()
    depths, epochs, limit = ((4,), 1, 2000) if chosen.quick else (DEPTHS, chosen.epochs, None)
    trials = jobs(chosen.data, depths, epochs, limit)
    folder = experiment.work(chosen.quick)
    found = experiment.train(
        trials.values(), folder, device=chosen.device, workers=os.cpu_count() or 1
    )
    rows = [
        {"depth": depth, "kind": kind, "setting": setting, **row}
        for (depth, kind, setting), row in zip(trials, found, strict=True)
    ]
    settings = {"epochs": epochs, "seed": 0, "measured on": "5,000 held-out training images"}
    record.write("paper_mnist_trials", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
