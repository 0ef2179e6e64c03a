"""What `gatepruner demo` prints, and how long it takes.

Runs the command as a process of its own and records its output and the wall-clock time.
Everything but the times repeats exactly on the same machine.

Aim: under 30 s on 2 cores.
"""

from __future__ import annotations

import subprocess
import tempfile

import record


def run() -> str:
    """The output of one run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [record.COMMAND, "demo", "--quiet"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
    return done.stdout


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=3, help="runs that are timed")
    chosen = options.parse_args()
    times, outputs = [], []
    for _ in range(2 if chosen.quick else chosen.runs):
        times.append(record.seconds(lambda: outputs.append(run())))
        print(f"{times[-1]:.1f} s", flush=True)
    rows = [{"output": outputs[-1].splitlines()}]
    settings = {"command": "gatepruner demo", "seconds": record.spread(times)}
    record.write("demo", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
