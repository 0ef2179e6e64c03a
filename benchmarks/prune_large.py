"""Time and peak memory of `gatepruner prune` on a checkpoint of about 1 GB.

The script makes the checkpoints in a temporary folder (`--folder` chooses on which disk): a gated
fully-connected network of 100 layers and 1,600 units, and a gated ViT-L/16 of torchvision's,
each as `.pt` and as `.safetensors`. In every round, with the file in the page cache, it times

- `cp` of the file,
- the same copy brought to the disk before it counts as done (`dd conv=fsync`), as `prune` does,
- `python -c "import torch"`, the start that `prune` cannot do without,
- `gatepruner prune --drop 0`, which writes a file of the same size, gates folded,
- `gatepruner prune --drop 0 --no-fold`, which changes no weight,
- `gatepruner prune --drop N`, half of the blocks, gates folded,

each as a process of its own, with the disk synchronised before each. The peak resident memory of
a process is the kernel's own (`ru_maxrss` of that child). Pages of a memory-mapped file count in
it, though the kernel can drop them at any time; so the peak of anonymous memory (`RssAnon`,
sampled every 5 ms) is reported beside it. This process imports neither torch nor gatepruner,
because a child's peak begins at its parent's.

Aims: near the time of copying the file; peak memory under 1.3 times the file.
Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

CASES = (("gated-residual-fc100,width=1600", 25), ("gated-torchvision:vit_l_16", 24))
QUICK = (("gated-residual-fc20,width=160", 5),)
SUFFIXES = (".pt", ".safetensors")


def watched(command: Sequence[str]) -> dict[str, float]:
    """Run a command to its end: seconds, peak resident and peak anonymous memory in bytes."""
    peak = pid = 0
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while not pid:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        taken = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode()}")
    return {"seconds": taken, "peak_bytes": usage.ru_maxrss * 1024, "anonymous_bytes": peak}


def anonymous(pid: int) -> int:
    """Memory in use that no file is behind, in bytes; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    held = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(held[0]) * 1024 if held else 0


def commands(whole: Path, copy: Path, drop: int) -> dict[str, list[str]]:
    """What is run in every round, by the name that the result gives it."""
    prune = [record.COMMAND, "prune", str(whole), "-o", str(copy), "--quiet", "--drop"]
    block_copy = ["dd", f"if={whole}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"]
    return {
        "cp": ["cp", str(whole), str(copy)],
        "dd conv=fsync": block_copy,
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "prune --drop 0": [*prune, "0"],
        "prune --drop 0 --no-fold": [*prune, "0", "--no-fold"],
        f"prune --drop {drop}": [*prune, str(drop)],
    }


def measured(name: str, drop: int, suffix: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each command on one checkpoint."""
    whole, copy = folder / f"whole{suffix}", folder / f"copy{suffix}"
    record.make(name, whole)
    size, runs = whole.stat().st_size, {}
    for _ in range(rounds):
        for what, command in commands(whole, copy, drop).items():
            warm(whole)
            os.sync()
            runs.setdefault(what, []).append(watched(command))
            for written in folder.glob(f"{copy.name}*"):  # the options of the call, too
                written.unlink()
            print(f"{name} {suffix} {what}: {runs[what][-1]['seconds']:.2f} s", flush=True)
    whole.unlink()
    case = {"network": name, "suffix": suffix, "file_bytes": size}
    rows = []
    for what, of in runs.items():
        peaks = {kind: max(run[f"{kind}_bytes"] for run in of) for kind in ("peak", "anonymous")}
        row = {**case, "command": what, "seconds": record.spread([run["seconds"] for run in of])}
        row |= {f"{kind}_bytes": peak for kind, peak in peaks.items()}
        rows.append(row | {f"{kind}_of_file": peak / size for kind, peak in peaks.items()})
    return rows


def warm(path: Path) -> None:
    """Read a file, so that it lies in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="rounds")
    options.add_argument("--folder", type=Path, help="where to make the temporary folder")
    chosen = options.parse_args()
    rounds = 2 if chosen.quick else chosen.rounds
    rows = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for name, drop in QUICK if chosen.quick else CASES:
            for suffix in SUFFIXES:
                rows += measured(name, drop, suffix, Path(folder), rounds)
    settings = {"rounds": rounds, "page_cache": "warm", "weights": "fresh, seed 0"}
    record.write("prune_large", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
