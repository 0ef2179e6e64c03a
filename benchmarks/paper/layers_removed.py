"""Experiment 4: accuracy against layers removed, networks of 100 layers.

The lowest gate first, the highest first, and at random (mean and range over orders and seeds),
with gates and without. Claims: over 90 % of the performance is left after half of the layers are
removed at random; gates make layers more independent of each other.

The first gated network is kept as `results/paper_layers_removed.safetensors`.

usage: python benchmarks/paper/layers_removed.py --data mnist:DIR
"""

from __future__ import annotations

from typing import Any

import experiment
import record
import removal
from fully_connected import DEEP, FIXED, FROM_ONE, RECIPE, checkpoints, parser

import gatepruner

KINDS = ("gated-residual", FIXED, FROM_ONE, "gated-plain", "residual")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--orders", type=int, default=10, help="random ones, for each network")
    chosen = options.parse_args()
    depth, limit = (6, 200) if chosen.quick else (DEEP, None)
    test = experiment.unseen(chosen.data, limit)
    counts = range(0, depth // 2 + 1, max(depth // 20, 1))
    stem = record.folder(chosen.quick) / "paper_layers_removed"
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for seed, checkpoint in enumerate(checkpoints(chosen, kind, depth)):
            if not rows:
                gatepruner.save(checkpoint, stem.with_suffix(".safetensors"), force=True)
            curves = removal.measured(checkpoint, test, counts, chosen.orders, chosen.device)
            rows += [{"kind": kind, "seed": seed, **row} for row in curves]
            print(f"{kind}, seed {seed}: {len(rows)} curves", flush=True)
    more = {"depth": depth, "random orders": chosen.orders, "images": len(test)}
    experiment.write(stem.name, chosen, RECIPE, rows, more)
    orders = [row for row in rows if row["kind"] == KINDS[0]]
    removal.draw(orders, "layers", len(test), stem.with_name(f"{stem.name}_orders"))
    random = [row for row in rows if row["order"] == removal.RANDOM]
    removal.draw(random, "layers", len(test), stem.with_name(f"{stem.name}_at_random"))


if __name__ == "__main__":
    main()
