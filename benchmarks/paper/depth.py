"""Experiments 1 to 3: error, mean gate and single gates against depth, networks of 2 to 200 layers.

1. Error against depth, for five kinds of network. Claims: plain networks stop training as they
   get deep, and one gate makes them trainable; gated residual networks are at least as good as
   residual ones.
2. Mean gate against depth. Claim: it falls with depth, large when shallow; 0.67 at 100 layers for
   the residual one.
3. The gate of every block of the networks of 100 layers. Claim: it is lowest somewhere in the
   middle.

usage: python benchmarks/paper/depth.py --data mnist:DIR
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import experiment
import fully_connected
import record

from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

KINDS = (*fully_connected.KINDS, fully_connected.FIXED)
GATED = ("gated-plain", "gated-residual", fully_connected.FROM_ONE)
Row = Mapping[str, Any]


def error(row: Row) -> float:
    """The error in percent; NaN where training failed."""
    return 100 * (1 - row.get("accuracy", math.nan))


def mean_gate(row: Row) -> float:
    """The mean of g = ReLU(k) over the blocks; NaN where training failed."""
    return statistics.fmean(row.get("gates", [math.nan]))


def against_depth(rows: Sequence[Row], value: Callable[[Row], float]) -> list[Curves]:
    """The value at every depth, a curve for every kind and seed."""
    curves = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = [row for row in rows if row["kind"] == kind]
        depths = sorted({row["depth"] for row in found})
        seeds = sorted({row["seed"] for row in found})
        runs = [[value(row) for row in found if row["seed"] == seed] for seed in seeds]
        curves.append(Curves(kind, depths, runs))
    return curves


def main() -> None:
    chosen = fully_connected.parser(__doc__).parse_args()
    depths, deep = ((2, 6), 6) if chosen.quick else (fully_connected.DEPTHS, fully_connected.DEEP)
    folder, recipe = record.folder(chosen.quick), fully_connected.RECIPE

    rows = fully_connected.trained(chosen, KINDS, depths)
    images, seconds = experiment.tested(rows), sum(row.get("seconds", 0) for row in rows)
    more = {"processes": chosen.workers, "seconds of them all": round(seconds)}
    experiment.write("paper_depth", chosen, recipe, rows, {"images": images, **more})
    label, depth = f"error (%), n = {images:,} images", "depth (layers)"
    figure = comparison_figure(against_depth(rows, error), depth, label, logarithmic="xy")
    save_figure(figure, folder / "paper_depth")

    rows = fully_connected.trained(chosen, GATED, depths)
    experiment.write("paper_mean_gate", chosen, recipe, rows, {})
    curves = against_depth(rows, mean_gate)
    figure = comparison_figure(curves, depth, "mean gate", logarithmic="xy")
    save_figure(figure, folder / "paper_mean_gate")

    rows = [row for row in rows if row["depth"] == deep and "gates" in row]
    experiment.write("paper_gate_of_every_block", chosen, recipe, rows, {"depth": deep})
    gates = {kind: [row["gates"] for row in rows if row["kind"] == kind] for kind in GATED}
    blocks = range(1, deep // 2 + 1)
    curves = [Curves(kind, blocks, runs) for kind, runs in gates.items()]
    figure = comparison_figure(curves, "block, in order of depth", "gate g = ReLU(k)")
    save_figure(figure, folder / "paper_gate_of_every_block")


if __name__ == "__main__":
    main()
