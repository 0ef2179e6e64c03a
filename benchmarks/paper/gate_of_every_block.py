"""Experiment 3: the gate of every block of the networks of 100 layers, in the order of depth.

Claim: it is lowest somewhere in the middle.

usage: python benchmarks/paper/gate_of_every_block.py --data mnist:DIR
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
    depth = fully_connected.deepest(chosen)
    rows = fully_connected.trained(chosen, KINDS, [depth])
    settings = {
        **experiment.described(fully_connected.RECIPE),
        "depth": depth,
        "seeds": chosen.seeds,
    }
    record.write("paper_gate_of_every_block", settings, rows, quick=chosen.quick)
    kinds = [
        Curves(
            kind,
            range(1, depth // 2 + 1),
            [row["gates"] for row in rows if row["kind"] == kind and "gates" in row],
        )
        for kind in KINDS
    ]
    figure = comparison_figure(kinds, "block, in order of depth", "gate g = ReLU(k)")
    save_figure(figure, record.folder(chosen.quick) / "paper_gate_of_every_block")


if __name__ == "__main__":
    main()
