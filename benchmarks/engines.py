"""How well the sum of what blocks save foretells the latency of a smaller network, by engine.

`Meter` measures what a block saves once for all blocks that do the same work, by removing all of
these, so that an engine prepares a few networks instead of one for every block. Random sets of a
quarter, half and three quarters of the removable blocks (seed 0) are measured in turns with the
whole network, and compared with the whole network's latency less the savings of their blocks.
Weights are fresh. Reported are the error relative to the whole network's latency and, for
comparison, that of scaling latency with MACs; how many networks each way takes; and how far the
engine's logits are from PyTorch's.

On the CPU: ResNet-56 (32 x 32 images), torchvision's ResNet-50 and ViT-B/16 (224 x 224), batch
size 1, one thread. With `--device cuda`: in PyTorch, one image and 64, and as compiled, which for
each network takes seconds; what is not begun `--within` so many seconds is left out, and said so.

Aim: the error of the sums is below 3 % of the whole network's latency.
"""

from __future__ import annotations

import random
import time
from typing import Any, NamedTuple

import record

import gatepruner
from gatepruner.measuring.cost import alike
from gatepruner.measuring.device import description, pick_device

SEED = 0
NETWORKS = {
    "ResNet-20": ("resnet20", None),
    "ResNet-20, 16 x 16": ("resnet20", (3, 16, 16)),
    "ResNet-50": ("torchvision:resnet50", None),
    "ResNet-56": ("resnet56", None),
    "ViT-B/16": ("torchvision:vit_b_16", None),
}
SHARES = (0.25, 0.5, 0.75)


class Case(NamedTuple):
    """A network on an engine."""

    title: str
    engine: str
    batch: int = 1


BIG, SIZES = ("ResNet-56", "ResNet-50", "ViT-B/16"), (1, 64)
QUICK = [Case("ResNet-20, 16 x 16", "onnxruntime")]
CASES = {
    "cpu": [
        *(Case(title, engine) for title in BIG for engine in ("eager", "onnxruntime", "openvino")),
        Case("ResNet-20", "compile"),
    ],
    "cuda": [
        *(Case(title, "eager", size) for size in SIZES for title in BIG),
        Case("ResNet-20", "compile"),
    ],
}


def measured(title: str, meter: gatepruner.Meter, sets: int) -> dict[str, Any]:
    """The errors of both ways to foretell latency for one network on one engine."""
    network, names, draw = meter.whole, meter.whole.removable, random.Random(SEED)
    plans = [draw.sample(names, round(share * len(names))) for share in SHARES for _ in range(sets)]
    start = time.perf_counter()
    saved = meter.savings("latency")
    seconds = time.perf_counter() - start
    whole, *small = meter.again([network, *(network.without(plan) for plan in plans)])
    known = meter.cost("latency", network)
    macs, *left = meter.costs("macs", [network, *(network.without(plan) for plan in plans)])
    points = []
    for plan, found, cost in zip(plans, small, left, strict=True):
        kept = found.median / whole.median
        sums = 1 - sum(saved[name] for name in plan) / known
        points.append({"removed": len(plan), "kept": kept, "sums": sums, "macs": cost / macs})
    errors = {
        way: max(abs(point[way] - point["kept"]) for point in points) for way in ("sums", "macs")
    }
    print(
        f"{title}, {whole.conditions}: {whole.median:.5f} s, greatest errors {errors}", flush=True
    )
    return {
        "network": title,
        "engine": whole.engine,
        "device": whole.device,
        "batch": whole.batch,
        "seconds": {"median": whole.median, "low": whole.low, "high": whole.high, "n": whole.runs},
        "networks": {"sums": len(alike(network)) + 1, "each": len(names) + 1},
        "seconds_of_savings": seconds,
        "errors": errors,
        "points": points,
    }


def agreement(meter: gatepruner.Meter) -> float:
    """How far the engine's logits are from PyTorch's on the same device."""
    whole = gatepruner.Checkpoint(meter.whole, meter.whole.initial_weights())
    how = {"device": meter.device, "threads": meter.threads, "seconds": 0.0}
    (one,) = gatepruner.bench({"whole": whole}, (meter.engine,), (meter.batch,), **how)
    return one.difference


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--device", default="cpu", choices=list(CASES))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--sets", type=int, default=4, help="random sets of each size")
    options.add_argument("--seconds", type=float, default=15, help="for each group of networks")
    options.add_argument("--within", type=float, default=3600, help="seconds to begin cases in")
    chosen = options.parse_args()
    cases = QUICK if chosen.quick else CASES[chosen.device]
    sets, seconds = (1, 0.5) if chosen.quick else (chosen.sets, chosen.seconds)
    settings = {
        "threads": chosen.threads,
        "device": description(pick_device(chosen.device)),
        "sets": f"{sets} random ones of each of {SHARES} of the blocks, seed {SEED}",
        "weights": "fresh",
    }
    rows, left, start = [], [*cases], time.perf_counter()
    while left and time.perf_counter() - start < chosen.within:
        title, engine, batch = left.pop(0)
        name, shape = NETWORKS[title]
        network = gatepruner.Network.named(name, input_shape=shape)
        where = (network, chosen.device, batch, seconds)
        meter = gatepruner.Meter(*where, engine=engine, threads=chosen.threads)
        rows.append({**measured(title, meter, sets), "difference": agreement(meter)})
        left_out = {"left_out": [" ".join(map(str, case)) for case in left]} if left else {}
        name = "engines" if chosen.device == "cpu" else f"engines_{chosen.device}"
        record.write(name, {**settings, **left_out}, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
