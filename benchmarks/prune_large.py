"""Time and peak memory of `gatepruner prune` on a checkpoint of about 1 GB.

The script makes the checkpoints in a temporary folder (`--folder` chooses on which disk): a gated
fully-connected network of 100 layers and 1,600 units, and a gated ViT-L/16 of torchvision's,
each as `.pt`, as `.safetensors`, and as four files of safetensors with an index. In every round,
with the files in the page cache, it times

- `cp` of the file, if it is one,
- the same copy brought to the disk before it counts as done (`dd conv=fsync`), as `prune` does,
- `python -c "import torch"`, the start that `prune` cannot do without,
- "no weights": `gatepruner prune --help`, and naming and counting the network, without a file,
- `gatepruner prune --drop 0`, which writes a file of the same size, gates folded,
- `gatepruner prune --drop 0 --no-fold`, which changes no weight,
- `gatepruner prune --drop N`, half of the blocks, gates folded,

each as a process of its own, with the disk synchronised before each. The peak of anonymous memory
(`RssAnon`, sampled every 5 ms) is what no file is behind, which the kernel cannot drop. It is
reported above that of `import torch`, and above that of "no weights" in units of the largest
tensor: this is what the weights take. The peak resident memory of a process is the kernel's own
(`ru_maxrss` of that child); pages of libraries, and of mapped files if there were any, count in it.
This process imports neither torch nor gatepruner, because a child's peak begins at its parent's.

Aims: near the time of copying the file; the weights take at most 1.1 times the largest tensor.
Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import record

CASES = (("gated-residual-fc100,width=1600", 25), ("gated-torchvision:vit_l_16", 24))
QUICK = (("gated-residual-fc20,width=160", 5),)
SHARDED = ".safetensors.index.json"
SUFFIXES = (".pt", ".safetensors", SHARDED)
IMPORT, ALONE = "python -c 'import torch'", "no weights"
WITHOUT_WEIGHTS = """
import contextlib, os, sys
import gatepruner
from gatepruner.cli import main
from gatepruner.files.checkpoints import load, save
from gatepruner.measuring.cost import count
name, sys.argv[1:] = sys.argv[1], ["prune", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, "w")):
    main()
network = gatepruner.Network.named(name)
count(network)
count(network.without_gates())
"""
LARGEST = """
import sys
import gatepruner
print(max(one.nbytes for one in gatepruner.Network.named(sys.argv[1]).state().values()))
"""
SHARDS = """
import json, sys
from pathlib import Path
import gatepruner
from safetensors.torch import save_file
index = Path(sys.argv[2])
weights = gatepruner.Network.named(sys.argv[1]).initial_weights(0)
keys, places = list(weights), {}
for number in range(4):
    name = f"{index.name}.{number}.safetensors"
    shard = keys[number * len(keys) // 4 : (number + 1) * len(keys) // 4]
    save_file({key: weights[key] for key in shard}, index.parent / name)
    places |= dict.fromkeys(shard, name)
index.write_text(json.dumps({"weight_map": places}))
"""


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


def make(name: str, whole: Path) -> list[Path]:
    """Write a checkpoint with fresh weights, and return its files with weights."""
    if not whole.name.endswith(SHARDED):
        record.make(name, whole)
        return [whole]
    record.run([sys.executable, "-c", SHARDS, name, str(whole)])
    return sorted(whole.parent.glob(f"{whole.name}.*.safetensors"))


def commands(name: str, whole: Path, copy: Path, drop: int) -> dict[str, list[str]]:
    """What is run in every round, by the name that the result gives it."""
    prune = [record.COMMAND, "prune", str(whole), "-o", str(copy), "--quiet", "--drop"]
    block_copy = ["dd", f"if={whole}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"]
    copying = {"cp": ["cp", str(whole), str(copy)], "dd conv=fsync": block_copy}
    arch = ["--arch", name] if whole.name.endswith(SHARDED) else []
    return {
        **({} if arch else copying),
        IMPORT: [sys.executable, "-c", "import torch"],
        ALONE: [sys.executable, "-c", WITHOUT_WEIGHTS, name],
        "prune --drop 0": [*prune, "0", *arch],
        "prune --drop 0 --no-fold": [*prune, "0", "--no-fold", *arch],
        f"prune --drop {drop}": [*prune, str(drop), *arch],
    }


def measured(name: str, drop: int, suffix: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each command on one checkpoint."""
    whole = folder / f"whole{suffix}"
    copy = folder / f"copy{'.safetensors' if suffix == SHARDED else suffix}"
    files, runs = make(name, whole), dict[str, list[dict[str, float]]]()
    for _ in range(rounds):
        for what, command in commands(name, whole, copy, drop).items():
            for file in files:
                warm(file)
            os.sync()
            runs.setdefault(what, []).append(watched(command))
            for written in folder.glob(f"{copy.name}*"):  # the options of the call, too
                written.unlink()
            print(f"{name} {suffix} {what}: {runs[what][-1]['seconds']:.2f} s", flush=True)
    size = sum(file.stat().st_size for file in files)
    for file in {whole, *files}:
        file.unlink()
    case = {"network": name, "suffix": suffix, "file_bytes": size, "largest_bytes": largest(name)}
    return rows_of(case, runs)


def rows_of(
    case: Mapping[str, Any], runs: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """A row for each command, from its runs."""
    peaks = {
        what: {kind: max(run[f"{kind}_bytes"] for run in of) for kind in ("peak", "anonymous")}
        for what, of in runs.items()
    }
    rows = []
    for what, of in runs.items():
        above, weights = (
            peaks[what]["anonymous"] - peaks[less]["anonymous"] for less in (IMPORT, ALONE)
        )
        row = {**case, "command": what, "seconds": record.spread([run["seconds"] for run in of])}
        row |= {f"{kind}_bytes": peak for kind, peak in peaks[what].items()}
        if what.startswith("prune"):
            row |= {
                "above_import_bytes": above,
                "above_import_of_file": above / case["file_bytes"],
                "weights_of_largest": weights / case["largest_bytes"],
            }
        elif what == ALONE:
            row["above_import_bytes"] = above
        rows.append(row)
    return rows


def largest(name: str) -> int:
    """The bytes of the largest tensor of a network."""
    asked = [sys.executable, "-c", LARGEST, name]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


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
    if chosen.rounds < 2:
        options.error(f"--rounds is {chosen.rounds}: expected at least 2, for quartiles")
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
