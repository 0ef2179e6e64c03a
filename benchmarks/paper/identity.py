"""Experiment 8: a deep stack is trained to be the identity, from random weights.

Inputs are uniform in [0, 1], which is what the ReLU at the end of a block lets through; the loss
is the mean squared error. Claim: with gates the identity is one parameter away from every block.

usage: python benchmarks/paper/identity.py
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gatepruner
from gatepruner.models.fully_connected import HighwayBlock, ResidualBlock
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.figures import save_figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks share `record`, too
import record

KINDS = ("plain", "gated-plain", "highway", "residual", "gated-residual")
WIDTH, BATCH, LAST = 50, 128, 10  # the end of a run is the mean over its last steps
SHAPE = (WIDTH, 1, 1)
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
RATES = {"adam": (0.001, 0.01), "sgd": (0.01, 0.1)}


class Stack(nn.Module):
    """Blocks and nothing else, vectors `(N, WIDTH, 1, 1)` to vectors `(N, WIDTH)`."""

    def __init__(self, blocks: int, block: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block(WIDTH) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(x.flatten(1))
        return found


def stack(kind: str, blocks: int) -> gatepruner.Checkpoint:
    """Random weights, drawn by torch's global generator, and the edits of that kind; k is 1."""
    module = Stack(blocks, HighwayBlock if kind == "highway" else ResidualBlock)
    network, drawn = gatepruner.Network.of(module, SHAPE), module.state_dict()
    if kind == "plain":
        network = network.without_shortcuts([it.name for it in network.blocks])
    elif kind.startswith("gated"):
        network = network.with_gates("plain" if kind == "gated-plain" else "residual")
    weights = {key: drawn.get(key, torch.ones(())) for key in network.state()}
    return gatepruner.Checkpoint(network, weights)


def losses(
    kind: str, blocks: int, seed: int, steps: int, optimizer: str, rate: float
) -> list[float]:
    """The loss at every step; all parameters have one learning rate, gates too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = stack(kind, blocks).build().train()
        taking = OPTIMIZERS[optimizer](module.parameters(), rate)
        found = torch.empty(steps)
        for step in range(steps):
            x = torch.rand(BATCH, *SHAPE)
            loss = (module(x) - x.flatten(1)).square().mean()
            taking.zero_grad()
            loss.backward()
            taking.step()
            found[step] = loss.detach()
    return [float(it) for it in found]


def best(rows: Sequence[dict[str, Any]], kind: str, optimizer: str) -> list[dict[str, Any]]:
    """The runs of the learning rate that ends with the lowest mean loss."""
    found = [row for row in rows if (row["kind"], row["optimizer"]) == (kind, optimizer)]
    by_rate = {row["rate"]: [it for it in found if it["rate"] == row["rate"]] for row in found}
    ends = {rate: sum(row["end"] for row in runs) for rate, runs in by_rate.items()}
    return by_rate[min(ends, key=lambda rate: (not math.isfinite(ends[rate]), ends[rate]))]


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--depth", type=int, default=100, help="layers, two a block")
    options.add_argument("--steps", type=int, default=250, help=f"of {BATCH} inputs")
    options.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    chosen = options.parse_args()
    depth, steps = (4, 20) if chosen.quick else (chosen.depth, chosen.steps)
    torch.set_num_threads(1)  # layers of 50 units are too small for more
    start, rows = time.perf_counter(), []
    for kind, (optimizer, rates) in itertools.product(KINDS, RATES.items()):
        for rate, seed in itertools.product(rates, range(chosen.seeds)):
            found = losses(kind, depth // 2, seed, steps, optimizer, rate)
            end = statistics.fmean(found[-LAST:])
            named = {"kind": kind, "optimizer": optimizer, "rate": rate, "seed": seed}
            rows.append(
                {**named, "first": found[0], "end": end, "losses": found[:: max(steps // 100, 1)]}
            )
        chosen_rows = best(rows, kind, optimizer)
        print(f"{kind}, {optimizer} {chosen_rows[0]['rate']}: {chosen_rows[0]['end']:.2g}")
    settings = {
        "depth": depth,
        "width": WIDTH,
        "steps": steps,
        "inputs in a step": BATCH,
        "seeds": chosen.seeds,
        "k at first": 1,
        "seconds": round(time.perf_counter() - start),
    }
    kept = [row for kind in KINDS for optimizer in RATES for row in best(rows, kind, optimizer)]
    record.write("paper_identity", settings, kept, quick=chosen.quick)
    kinds = []
    for kind in KINDS:
        runs = [row["losses"] for row in best(rows, kind, "adam")]
        x = [step * max(steps // 100, 1) for step in range(len(runs[0]))]
        kinds.append(Curves(kind, x, runs))
    drawn = comparison_figure(
        kinds, "steps", "mean squared error", logarithmic="y", marked=False, height=4.0
    )
    save_figure(drawn, record.folder(chosen.quick) / "paper_identity")


if __name__ == "__main__":
    main()
