"""How long the command line takes to start, and what `prune` costs above importing torch.

Five commands are run in turns, so that all of them meet the same conditions: Python that does
nothing, `import torch`, `gatepruner --help`, `gatepruner prune` of a gated ResNet-56 (its
checkpoint, with fresh weights, is made by this script) and `gatepruner demo`. Reported are the
median and quartiles of the wall-clock time of the whole process. One round before the others is not
counted.

Aims: `--help` in under 0.3 s; `prune` at most 0.5 s more than `import torch`; `demo` in under 30 s.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import record

NETWORK, DROP = "gated-resnet56", "10"


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=15, help="rounds that are counted")
    chosen = options.parse_args()
    runs = 2 if chosen.quick else chosen.runs
    with tempfile.TemporaryDirectory() as folder:
        whole, small, demo = (str(Path(folder) / name) for name in ("whole.pt", "small.pt", "demo"))
        record.make(NETWORK, Path(whole))
        prune = [record.COMMAND, "prune", whole, "--drop", DROP, "-o", small, "--force"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "gatepruner --help": [record.COMMAND, "--help"],
            f"gatepruner prune --drop {DROP}": prune,
            "gatepruner demo": [record.COMMAND, "demo", "-o", demo, "--force", "--quiet"],
        }
        work = {name: partial(record.run, command) for name, command in commands.items()}
        times = record.in_turns(work, runs)
    rows = [{"command": name, "seconds": record.spread(taken)} for name, taken in times.items()]
    settings = {"network": NETWORK, "weights": "fresh, seed 0", "drop": int(DROP), "runs": runs}
    record.write("cli_overhead", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
