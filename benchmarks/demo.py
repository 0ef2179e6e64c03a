"""What `gatepruner demo` finds, and how long it takes.

Runs the command as a process of its own and records its removal curve on the embedded images,
the random orders beside it, and the wall-clock time. Everything but the time repeats exactly on
the same machine.

Aim: under 30 s on 2 cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from typing import Any

import record


def run() -> Any:
    """The JSON document of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [record.COMMAND, "demo", "--json", "--quiet", "-o", f"{folder}/demo"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=3, help="runs that are timed")
    chosen = options.parse_args()
    times, found = [], {}
    for _ in range(2 if chosen.quick else chosen.runs):
        times.append(record.seconds(lambda: found.update(run())))
        print(f"{times[-1]:.1f} s", flush=True)
    rows = []
    for index, point in enumerate(found["points"]):
        others = [curve[index]["accuracy"] for curve in found["random"]]
        kept = point["macs"] / found["points"][0]["macs"]
        rows.append({**point, "random": statistics.fmean(others), "macs_kept": kept})
    settings = {"network": found["name"], "seconds": record.spread(times), **found["configuration"]}
    record.write("demo", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
