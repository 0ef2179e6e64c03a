"""How well the sum of what blocks save foretells the latency of a smaller network, by engine.

`Meter` measures what a block saves once for all blocks that do the same work, by removing all of
these, so that an engine prepares a few networks instead of one for every block. For ResNet-56
(32 x 32 images), torchvision's ResNet-50 and ViT-B/16 (224 x 224), batch size 1, one thread: random
sets of a quarter, half and three quarters of the removable blocks (seed 0) are measured in turns
with the whole network, and compared with the whole network's latency less the savings of their
blocks. Weights are fresh. Reported are the error relative to the whole network's latency and, for
comparison, that of scaling latency with MACs; and how many networks each way takes.

Aim: the error of the sums is below 3 % of the whole network's latency.
"""

from __future__ import annotations

import random
import time
from typing import Any

import record

import gatepruner
from gatepruner.measuring.cost import alike

SEED = 0
NETWORKS = {
    "ResNet-56": ("resnet56", None),
    "ResNet-50": ("torchvision:resnet50", None),
    "ViT-B/16": ("torchvision:vit_b_16", None),
}
QUICK = {"ResNet-20": ("resnet20", (3, 16, 16))}
SHARES = (0.25, 0.5, 0.75)


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
    print(f"{title}, {meter.engine}: {whole.median:.5f} s, greatest errors {errors}", flush=True)
    return {
        "network": title,
        "engine": meter.engine,
        "seconds": {"median": whole.median, "low": whole.low, "high": whole.high, "n": whole.runs},
        "networks": {"sums": len(alike(network)) + 1, "each": len(names) + 1},
        "seconds_of_savings": seconds,
        "errors": errors,
        "points": points,
    }


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--engines", default="eager,onnxruntime,openvino,compile")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--sets", type=int, default=4, help="random sets of each size")
    options.add_argument("--seconds", type=float, default=60, help="for each group of networks")
    chosen = options.parse_args()
    engines = ("onnxruntime",) if chosen.quick else chosen.engines.split(",")
    rows, sets, seconds = [], *((1, 0.5) if chosen.quick else (chosen.sets, chosen.seconds))
    for title, (name, shape) in (QUICK if chosen.quick else NETWORKS).items():
        network = gatepruner.Network.named(name, input_shape=shape)
        for engine in engines:
            threads = chosen.threads
            meter = gatepruner.Meter(network, "cpu", 1, seconds, engine=engine, threads=threads)
            rows.append(measured(title, meter, sets))
    settings = {
        "threads": chosen.threads,
        "batch": 1,
        "sets": f"{sets} random ones of each of {SHARES} of the blocks, seed {SEED}",
        "weights": "fresh",
    }
    record.write("engines", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
