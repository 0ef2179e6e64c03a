"""Experiment 4: accuracy against layers removed, networks of 100 layers.

The lowest gate first, the highest first, and at random (mean and range over orders and seeds),
with gates and without. Claims: over 90 % of the performance is left after half of the layers are
removed at random; gates make layers more independent of each other.

The first gated network is kept as `results/paper_layers_removed.safetensors`.

usage: python benchmarks/paper/layers_removed.py --data mnist:DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import experiment
import fully_connected
import record
import removal

import gatepruner
from gatepruner.report.style import save_figure

KINDS = (
    "gated-residual",
    fully_connected.FIXED,
    fully_connected.FROM_ONE,
    "gated-plain",
    "residual",
)


def draw(rows: Sequence[dict[str, Any]], images: int, folder: Path) -> None:
    """One figure of the orders in which a gated network goes, one of all networks at random."""
    orders = [row for row in rows if row["kind"] == KINDS[0]]
    random = [row for row in rows if row["order"] == removal.RANDOM]
    for name, shown in (("orders", orders), ("at_random", random)):
        drawn = removal.figure(shown, images, 2, "layers")
        save_figure(drawn, folder / f"paper_layers_removed_{name}")


def main() -> None:
    options = fully_connected.parser(__doc__)
    options.add_argument("--orders", type=int, default=10, help="random ones, for each network")
    chosen = options.parse_args()
    depth = fully_connected.deepest(chosen)
    counts = range(0, depth // 2 + 1, max(depth // 20, 1))
    test = experiment.unseen(chosen.data)
    test = test.spread(200) if chosen.quick else test
    rows = []
    for kind in KINDS:
        for seed, checkpoint in enumerate(fully_connected.checkpoints(chosen, kind, depth)):
            found = removal.measured(checkpoint, test, counts, chosen.orders, chosen.device)
            rows += [{"kind": kind, "seed": seed, **row} for row in found]
            print(f"{kind}, seed {seed}: {len(rows)} curves", flush=True)
            if (kind, seed) == (KINDS[0], 0):
                kept = record.folder(chosen.quick) / "paper_layers_removed.safetensors"
                gatepruner.save(checkpoint, kept, force=True)
    settings = {
        **experiment.described(fully_connected.RECIPE),
        "depth": depth,
        "seeds": chosen.seeds,
        "random orders": chosen.orders,
        "images": len(test),
    }
    record.write("paper_layers_removed", settings, rows, quick=chosen.quick)
    draw(rows, len(test), record.folder(chosen.quick))


if __name__ == "__main__":
    main()
