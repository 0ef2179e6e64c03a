"""Experiment 1: error against depth, for five kinds of network.

Claims: plain networks stop training as they get deep, and one gate makes them trainable; gated
residual networks are at least as good as residual ones.

usage: python benchmarks/paper/depth.py --data mnist:DIR
"""

from __future__ import annotations

import experiment
import fully_connected
import record

from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

KINDS = (*fully_connected.KINDS, fully_connected.FIXED)


def main() -> None:
    chosen = fully_connected.parser(__doc__).parse_args()
    depths = fully_connected.depths(chosen)
    rows = fully_connected.trained(chosen, KINDS, depths)
    settings = {
        **experiment.described(fully_connected.RECIPE),
        "seeds": chosen.seeds,
        "images": experiment.tested(rows),
        "processes": chosen.workers,
        "seconds of them all": round(sum(row.get("seconds", 0) for row in rows)),
    }
    record.write("paper_depth", settings, rows, quick=chosen.quick)
    kinds = [
        Curves(kind, depths, experiment.runs(rows, depths, kind, experiment.error))
        for kind in KINDS
    ]
    label = f"error (%), n = {experiment.tested(rows):,} images"
    figure = comparison_figure(kinds, "depth (layers)", label, logarithmic="xy")
    save_figure(figure, record.folder(chosen.quick) / "paper_depth")


if __name__ == "__main__":
    main()
