"""How long the command line takes to start, and what `prune` costs above importing torch.

Four commands are run in turns, so that all of them meet the same conditions: Python that does
nothing, `import torch`, `gatepruner --help`, and `gatepruner prune` of a gated ResNet-56 (its
checkpoint, with fresh weights, is made by this script). Reported are the median and quartiles
of the wall-clock time of the whole process. One round before the others is not counted.

Aims: `--help` in under 0.3 s; `prune` at most 0.5 s more than `import torch`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import record

NETWORK = "gated-resnet56"
DROP = 10
MAKE = """
import sys
import gatepruner
network = gatepruner.Network.named(sys.argv[1])
gatepruner.save(gatepruner.Checkpoint(network, network.initial_weights(0)), sys.argv[2])
"""


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=15, help="rounds that are counted")
    chosen = options.parse_args()
    runs = 2 if chosen.quick else chosen.runs
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.pt", Path(folder) / "small.pt"
        record.run([sys.executable, "-c", MAKE, NETWORK, str(whole)])
        prune = [record.COMMAND, "prune", str(whole), "--drop", str(DROP), "-o", str(small)]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "gatepruner --help": [record.COMMAND, "--help"],
            f"gatepruner prune --drop {DROP}": [*prune, "--force"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(runs + 1):
            for name, command in commands.items():
                taken = record.seconds(lambda command=command: record.run(command))  # type: ignore[misc]
                if turn:
                    times[name].append(taken)
    rows = [{"command": name, "seconds": record.spread(found)} for name, found in times.items()]
    settings = {"network": NETWORK, "weights": "fresh, seed 0", "drop": DROP, "runs": runs}
    record.write("cli_overhead", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
