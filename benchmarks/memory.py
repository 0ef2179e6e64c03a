"""What it brings that commands have glibc keep the memory that they free.

`gatepruner evaluate` runs as it is, and with glibc's own settings; whole processes, in turns, under
the same conditions. The networks have fresh weights, and the pictures, of noise, are written by
this script. Reported are wall-clock time, the processor time of the process and that which the
kernel took for it, the number of pages that the kernel handed out, and the peak memory.

Needs Linux with glibc.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image

RUN = "from gatepruner.cli import app; app()"
KEEP = "from gatepruner.cli.memory import keep_pages; assert keep_pages()"
WAYS = {"glibc's settings": RUN, "as commands run": f"{KEEP}; {RUN}"}
# Network, side of the pictures, how many, batch size.
CASES = (
    ("torchvision:mobilenet_v3_small", 224, 200, 50),
    ("torchvision:efficientnet_b0", 224, 100, 50),
    ("resnet20", 32, 2000, 128),
)
QUICK = (("resnet8", 32, 20, 10),)


def write_pictures(folder: Path, side: int, count: int) -> None:
    """Pictures of noise, in two classes."""
    draw = np.random.default_rng(0)
    for index in range(count):
        file = folder / "test" / str(index % 2) / f"{index}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(file)


def spent(code: str, arguments: list[str]) -> dict[str, float]:
    """What a process cost that runs a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"gatepruner {' '.join(arguments)} ended with {status}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "kernel": usage.ru_stime,
        "pages": usage.ru_minflt,
        "peak": usage.ru_maxrss * 1024,
    }


def measured(case: tuple[str, int, int, int], runs: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each way to evaluate a network."""
    network, side, count, batch = case
    checkpoint, pictures = folder / f"{count}.pt", folder / str(count)
    record.make(network, checkpoint)
    write_pictures(pictures, side, count)
    arguments = ["evaluate", str(checkpoint), "--data", f"imagefolder:{pictures}", "--resize", "0"]
    arguments += ["--batch-size", str(batch), "--device", "cpu", "--classes", str(folder / "names")]
    (folder / "names").write_text("".join(f"{name}\n" for name in range(classes_of(network))))
    costs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, code in WAYS.items():
            costs[way].append(spent(code, arguments))
            print(network, way, costs[way][-1], flush=True)
    about = {"network": network, "side": side, "images": count, "batch": batch}
    return [
        {**about, "way": way, **{key: record.spread([one[key] for one in of]) for key in of[0]}}
        for way, of in costs.items()
    ]


def classes_of(network: str) -> int:
    import gatepruner

    return gatepruner.Network.named(network).num_classes


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=5, help="rounds")
    chosen = options.parse_args()
    cases, runs = (QUICK, 2) if chosen.quick else (CASES, chosen.runs)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for case in cases for row in measured(case, runs, Path(folder))]
    settings = {"command": "evaluate", "weights": "fresh, seed 0", "runs": runs}
    record.write("memory", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
