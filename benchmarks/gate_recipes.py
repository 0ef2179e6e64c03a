"""How long learning gates takes, and what its path is worth, by recipe.

Every recipe learns the gates of one trained network from the same training images; along its path
the accuracy on val and test together, which nothing was chosen on, is counted with the statistics
of batch norm estimated anew. With --amp off, learning computes in float32 as on a CPU without bf16;
what such a CPU takes is nearer with its instructions alone:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/gate_recipes.py --amp off ...

usage: python benchmarks/gate_recipes.py --checkpoint FILE --data DIR [--amp off] [--seeds 3]
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import record
import torch

import gatepruner

COUNTS = (5, 8, 10, 13)  # removals that are measured
RECIPES = {  # by name: what differs from the default recipe
    "batches of 128": {"batch_size": 128},
    "batches of 64": {"batch_size": 64},
    "batches of 32": {"batch_size": 32},
    "batches of 64, 25 steps": {"batch_size": 64, "warmup": 30, "steps": 25},
}


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options.add_argument("--blocks", type=int, default=13, help="blocks to remove")
    options.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options.add_argument("--images", type=int, default=10_000, help="training images")
    options.add_argument("--amp", default="auto", help="precision of learning")
    options.add_argument("--name", default="gate_recipes", help="of the result")
    chosen = options.parse_args()
    limits = {"train": chosen.images, "val": None, "test": None}
    if chosen.quick:
        limits = {"train": 256, "val": 100, "test": 100}
    whole, train, val, test = record.loaded(chosen, **limits)
    held_out = val.joined(test)
    base = gatepruner.GateRecipe(blocks=chosen.blocks, amp=chosen.amp)
    if chosen.quick:
        base = replace(base, blocks=2)
    counts = [count for count in COUNTS if count <= (base.blocks or 0)]
    rows = []
    for seed in range(chosen.seeds):
        for name in chosen.recipes:
            recipe = replace(base, seed=seed, **RECIPES[name])
            if chosen.quick:
                recipe = replace(recipe, warmup=1, steps=1)
            start = time.perf_counter()
            gated = gatepruner.learn_gates(whole, train, recipe, device=chosen.device)
            seconds = time.perf_counter() - start
            statistics = train.spread(2000)
            how = {"statistics": statistics, "counts": counts, "device": chosen.device}
            points = list(gatepruner.sweep(gated, held_out, gatepruner.rank(gated), **how))
            row = {"recipe": name, "seed": seed, "seconds": seconds}
            rows += [
                {**row, "removed": point.removed, **point.accuracy.to_json()} for point in points
            ]
            print(row, [round(100 * point.accuracy.accuracy, 2) for point in points], flush=True)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "training images": len(train),
        "held-out images": len(held_out),
        "whole": gatepruner.accuracy(whole, held_out, device=chosen.device).accuracy,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gates": asdict(base),
        "threads": torch.get_num_threads(),
    }
    record.write(chosen.name, settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
