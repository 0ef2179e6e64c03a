"""How much faster several processes are than one, each on one thread.

The same work is done by 1 process and by several, started by torchrun in turns: accuracy, learning
gates, training. Every process has one CPU thread, whatever their number, so the ideal speed-up is
the number of processes. The time is that of the verb in the first process, after a first call that
is not counted; starting processes and reading images are left out.

`--device cuda` gives each process a GPU of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

NETWORK, SHAPE = "resnet20", (3, 32, 32)
IMAGES, BATCH, STEPS = 2000, 128, 15
QUICK = ("resnet8", (3, 8, 8), 40, 8, 2)


def works(
    network: str, shape: tuple[int, int, int], images: int, batch: int, steps: int, device: str
) -> dict[str, Callable[[], object]]:
    """What is timed, by name, on images of noise and with fresh weights."""
    import torch

    import gatepruner

    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, *shape), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (images,), generator=draw)
    data = gatepruner.Images(labels, tuple("0123456789"), shape, "noise", pixels)
    few = data.take(torch.arange(min(images, batch * steps)))
    made = gatepruner.Network.named(network, num_classes=10, input_shape=shape)
    whole = gatepruner.Checkpoint(made, made.initial_weights(0))
    gating = gatepruner.GateRecipe(blocks=1, warmup=steps - 1, steps=1, batch_size=batch)
    training = gatepruner.Recipe(epochs=1, batch_size=batch)
    return {
        "accuracy": lambda: gatepruner.accuracy(whole, data, device=device, batch_size=batch),
        "learning gates": lambda: gatepruner.learn_gates(whole, data, gating, device=device),
        "training": lambda: gatepruner.train(made, few, training, device=device),
    }


def time_work(name: str, device: str, quick: bool, file: Path) -> None:
    """Carry out a work in each process; the first one writes how long it took."""
    import torch

    from gatepruner import launching, processes

    torch.set_num_threads(1)
    size = QUICK if quick else (NETWORK, SHAPE, IMAGES, BATCH, STEPS)
    run = launching.begin()
    work = works(*size, device)[name]
    work()
    processes.agreed(lambda: None)
    taken = record.seconds(work)
    if processes.rank() == 0:
        file.write_text(json.dumps(taken))
    if run is not None:
        launching.end()


def timed(name: str, count: int, chosen: argparse.Namespace, file: Path) -> float:
    """Seconds of a work in so many processes."""
    own = ["--work", name, "--file", str(file), "--device", chosen.device]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, *own]
    record.run([*command, "--quick"] if chosen.quick else command)
    return float(json.loads(file.read_text()))


def measured(chosen: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """A row for every work and number of processes."""
    counts = [int(count) for count in chosen.processes.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("accuracy", "learning gates", "training"):
            times: dict[int, list[float]] = {count: [] for count in counts}
            for _ in range(rounds):
                for count in counts:
                    times[count].append(timed(name, count, chosen, Path(folder) / "seconds"))
            alone = record.spread(times[counts[0]])["median"] * counts[0]
            for count, taken in times.items():
                seconds = record.spread(taken)
                speedup = alone / seconds["median"]
                rows.append(
                    {"work": name, "processes": count, "seconds": seconds, "speedup": speedup}
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--device", default="cpu", help="where to compute")
    options.add_argument("--processes", default="1,2", help="numbers of processes, with commas")
    options.add_argument("--rounds", type=int, default=7, help="rounds")
    options.add_argument("--work", help=argparse.SUPPRESS)
    options.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.work:
        return time_work(chosen.work, chosen.device, chosen.quick, chosen.file)
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds = 2 if chosen.quick else chosen.rounds
    settings = {
        "network": NETWORK,
        "images": IMAGES,
        "batch": BATCH,
        "steps": STEPS,
        "device": chosen.device,
        "threads of a process": 1,
        "rounds": rounds,
    }
    rows = measured(chosen, rounds)
    record.write("scaling", settings, rows, quick=chosen.quick)
    return None


if __name__ == "__main__":
    main()
