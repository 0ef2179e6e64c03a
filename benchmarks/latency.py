"""Latency against blocks removed, and against the MACs that are left.

For ResNet-56 (32 x 32 images) and torchvision's ResNet-50 (224 x 224), at batch sizes 1 and 64:
residual blocks with an identity shortcut are removed in one random order (seed 0), the gates are
folded, and the whole network and its pruned variants are timed in turns within every round
(`gatepruner.latency`). Weights are fresh: the time does not depend on their values. Reported for
each variant are median and quartiles, the share of the latency and of the MACs that is kept, and
how much of the saving in MACs arrives as a saving in time,
(1 - latency kept) / (1 - MACs kept).

Aim: latency falls at least 0.97 as much as the MACs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import record

import gatepruner

SEED = 0
CASES: tuple[tuple[str, str, tuple[int, ...], dict[int, int]], ...] = (  # runs by batch size
    ("ResNet-56", "gated-resnet56", (0, 5, 10, 15, 20), {1: 200, 64: 50}),
    ("ResNet-50", "gated-torchvision:resnet50", (0, 3, 6, 9, 12), {1: 60, 64: 15}),
)


def variants(name: str, counts: Sequence[int]) -> dict[int, gatepruner.Checkpoint]:
    """The network with these numbers of identity blocks removed, gates folded."""
    network = gatepruner.Network.named(name)
    whole = gatepruner.Checkpoint(network, network.initial_weights(SEED))
    identity = [block.name for block in network.blocks if block.identity]
    order = gatepruner.rank(whole, "random", seed=SEED).among(identity)
    return {n: gatepruner.fold_gates(gatepruner.remove(whole, order.first(n))) for n in counts}


def measured(
    name: str, counts: Sequence[int], batch: int, runs: int, device: str
) -> list[dict[str, Any]]:
    """The variants of one network at one batch size."""
    pruned = variants(name, counts)
    shape = pruned[0].network.base.input_shape
    modules = {str(n): small.build() for n, small in pruned.items()}
    times = gatepruner.latency(modules, shape, batch=batch, device=device, runs=runs)
    macs = {n: gatepruner.count(small.network).macs for n, small in pruned.items()}
    points = []
    for n in counts:
        one = times[str(n)]
        latency_kept, macs_kept = one.median / times["0"].median, macs[n] / macs[0]
        seconds = {"median": one.median, "low": one.low, "high": one.high, "n": one.runs}
        ratio = (1 - latency_kept) / (1 - macs_kept) if n else None
        kept = {"latency_kept": latency_kept, "macs_kept": macs_kept, "ratio": ratio}
        points.append({"removed": n, "seconds": seconds, "macs": macs[n], **kept})
        print(f"{name}, batch size {batch}: {n} removed, {1e3 * one.median:.2f} ms", flush=True)
    return points


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--device", default="cpu", help="where to measure")
    chosen = options.parse_args()
    rows = []
    for title, name, counts, runs in CASES:
        for batch in runs:
            size = (counts[:3], min(batch, 2), 3) if chosen.quick else (counts, batch, runs[batch])
            row = {"network": title, "name": name, "batch": size[1], "device": chosen.device}
            rows.append({**row, "points": measured(name, *size, chosen.device)})
    settings = {
        "order": f"random, seed {SEED}; identity blocks only",
        "weights": f"fresh, seed {SEED}; gates folded",
        "device": chosen.device,
        "warm_up_rounds": 3,
    }
    record.write("latency", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
