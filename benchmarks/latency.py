"""Latency against blocks removed, and against the MACs that are left.

For ResNet-56 (32 x 32 images) and torchvision's ResNet-50 (224 x 224), at batch sizes 1 and 64:
residual blocks with an identity shortcut are removed in one random order (seed 0), and the whole
network and its pruned variants are timed in turns within every round. Weights are fresh: the time
does not depend on their values. Reported for each variant are median and quartiles, the share of
the latency and of the MACs that is kept, and how much of the saving in MACs arrives as a saving in
time, (1 - latency kept) / (1 - MACs kept).

Aim: latency falls at least 0.97 as much as the MACs do.
"""

from __future__ import annotations

import random
from typing import Any

import record

import gatepruner

SEED = 0
CASES = {
    "ResNet-56": ("resnet56", (0, 5, 10, 15, 20)),
    "ResNet-50": ("torchvision:resnet50", (0, 3, 6, 9, 12)),
}


def measured(name: str, counts: tuple[int, ...], meter: gatepruner.Meter) -> list[dict[str, Any]]:
    """The variants of one network at one batch size."""
    order = [block.name for block in meter.whole.blocks if block.identity]
    random.Random(SEED).shuffle(order)
    networks = [meter.whole.without(order[:count]) for count in counts]
    latencies, macs = meter.latencies(networks), meter.costs("macs", networks)
    points = []
    for count, one, cost in zip(counts, latencies, macs, strict=True):
        latency_kept, macs_kept = one.median / latencies[0].median, cost / macs[0]
        seconds = {"median": one.median, "low": one.low, "high": one.high, "n": one.runs}
        ratio = (1 - latency_kept) / (1 - macs_kept) if count else None
        kept = {"latency_kept": latency_kept, "macs_kept": macs_kept, "ratio": ratio}
        points.append({"removed": count, "seconds": seconds, "macs": cost, **kept})
        print(f"{name}, batch size {meter.batch}: {count} removed, {one.median:.5f} s", flush=True)
    return points


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--device", default="cpu", help="where to measure")
    options.add_argument(
        "--seconds", type=float, default=300, help="for each network and batch size"
    )
    chosen = options.parse_args()
    rows, batches = [], (1, 2) if chosen.quick else (1, 64)
    for title, (name, counts) in CASES.items():
        for batch in batches:
            seconds = 0.1 if chosen.quick else chosen.seconds
            network = gatepruner.Network.named(name)
            meter = gatepruner.Meter(network, chosen.device, batch, seconds)
            row = {"network": title, "name": name, "batch": batch, "device": chosen.device}
            rows.append({**row, "points": measured(title, counts, meter)})
    settings = {
        "order": f"random, seed {SEED}; identity blocks only",
        "weights": "fresh",
        "device": chosen.device,
    }
    record.write("latency", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
