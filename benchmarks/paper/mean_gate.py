"""Experiment 2: mean gate against depth, gated plain and gated residual networks.

Claim: it falls with depth, large when shallow; 0.67 at 100 layers for the residual one.

usage: python benchmarks/paper/mean_gate.py --data mnist:DIR
"""

from __future__ import annotations

import experiment
import fully_connected
import record

from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

KINDS = ("gated-plain", "gated-residual", fully_connected.FROM_ONE)


def main() -> None:
    chosen = fully_connected.parser(__doc__).parse_args()
    depths = fully_connected.depths(chosen)
    rows = fully_connected.trained(chosen, KINDS, depths)
    settings = {**experiment.described(fully_connected.RECIPE), "seeds": chosen.seeds}
    record.write("paper_mean_gate", settings, rows, quick=chosen.quick)
    kinds = [
        Curves(kind, depths, experiment.runs(rows, depths, kind, experiment.mean_gate))
        for kind in KINDS
    ]
    figure = comparison_figure(kinds, "depth (layers)", "mean gate", logarithmic="xy")
    save_figure(figure, record.folder(chosen.quick) / "paper_mean_gate")


if __name__ == "__main__":
    main()
