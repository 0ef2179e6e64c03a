"""Experiment 8: a deep stack is trained to be the identity, from random weights.

Inputs are uniform in [0, 1], which is what the ReLU at the end of a block lets through; the loss
is the mean squared error. Claim: with gates the identity is one parameter away from every block.
All kinds have Adam and the better of two learning rates.

usage: python benchmarks/paper/identity.py
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gatepruner
from gatepruner.models.fully_connected import HighwayBlock, ResidualBlock
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks share `record`, too
import record

WIDTH, BATCH, LAST = 50, 128, 10  # the end of a run is the mean over its last steps
SHAPE = (WIDTH, 1, 1)
RATES = (0.001, 0.01)
FLOOR = 1e-8  # what is less is drawn as this: many losses are 0 exactly


@dataclass(frozen=True)
class Kind:
    """A kind of stack, and how its gates are learned."""

    block: Callable[[int], nn.Module] = ResidualBlock
    gates: str | None = None  # their mode
    shortcuts: bool = True
    first: float = 1.0  # k at first
    rate: float | None = None  # of the gates; that of the weights by default
    alone: bool = False  # nothing but the gates is learned


KINDS = {
    "plain": Kind(shortcuts=False),
    "gated-plain": Kind(gates="plain"),
    "highway": Kind(partial(HighwayBlock, transform_bias=-4)),
    "residual": Kind(),
    "gated-residual": Kind(gates="residual"),
    "gated-residual, k 0.05": Kind(gates="residual", rate=0.05),
    "gated-residual, from 0.1": Kind(gates="residual", first=0.1),
    "gated-residual, k 0.05 alone": Kind(gates="residual", rate=0.05, alone=True),
    "gated-plain, from 0.1": Kind(gates="plain", first=0.1),
}
DRAWN = tuple(KINDS)[:7]


class Stack(nn.Module):
    """Blocks and nothing else, vectors `(N, WIDTH, 1, 1)` to vectors `(N, WIDTH)`."""

    def __init__(self, blocks: int, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block(WIDTH) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x.flatten(1))
        return y


def stack(kind: Kind, blocks: int) -> gatepruner.Checkpoint:
    """Random weights, drawn by torch's global generator, and the edits of that kind."""
    module = Stack(blocks, kind.block)
    network, drawn = gatepruner.Network.of(module, SHAPE), module.state_dict()
    if not kind.shortcuts:
        network = network.without_shortcuts([block.name for block in network.blocks])
    elif kind.gates:
        network = network.with_gates(kind.gates)
    weights = {key: drawn.get(key, torch.tensor(kind.first)) for key in network.state()}
    return gatepruner.Checkpoint(network, weights)


def losses(kind: Kind, blocks: int, seed: int, steps: int, rate: float) -> list[float]:
    """The loss at every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = stack(kind, blocks)
        module = start.build().train()
        optimizer = torch.optim.Adam(parameter_groups(kind, start.network, module, rate))
        curve = torch.empty(steps)
        for step in range(steps):
            x = torch.rand(BATCH, *SHAPE)
            loss = (module(x) - x.flatten(1)).square().mean()
            module.zero_grad()
            loss.backward()
            optimizer.step()
            curve[step] = loss.detach()
    return [float(loss) for loss in curve]


def parameter_groups(
    kind: Kind, network: gatepruner.Network, module: nn.Module, rate: float
) -> list[dict[str, Any]]:
    """Weights and gates with their learning rates; only the gates if they learn alone."""
    keys = {network.gate_key(name) for name in network.edits.gated}
    parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for key, parameter in module.named_parameters():
        parts[key in keys].append(parameter)
    groups = [{"params": parts[True], "lr": rate if kind.rate is None else kind.rate}]
    groups += [] if kind.alone else [{"params": parts[False], "lr": rate}]
    return [group for group in groups if group["params"]]


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of the learning rate that ends with the lowest mean loss."""
    ends = {rate: sum(row["end"] for row in rows if row["rate"] == rate) for rate in RATES}
    rate = min(RATES, key=lambda rate: (not math.isfinite(ends[rate]), ends[rate]))
    return [row for row in rows if row["rate"] == rate]


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--depths", type=int, nargs="+", default=[10, 100], help="two a block")
    options.add_argument("--steps", type=int, default=250, help=f"of {BATCH} inputs")
    options.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    chosen = options.parse_args()
    depths, steps = ([4], 20) if chosen.quick else (chosen.depths, chosen.steps)
    torch.set_num_threads(1)  # layers of 50 units are too small for more
    start, rows, curves = time.perf_counter(), [], []
    every = max(steps // 100, 1)
    for depth, (name, kind) in itertools.product(depths, KINDS.items()):
        runs = []
        for rate, seed in itertools.product(RATES, range(chosen.seeds)):
            curve = losses(kind, depth // 2, seed, steps, rate)
            run = {"kind": name, "depth": depth, "rate": rate, "seed": seed, "first": curve[0]}
            end = statistics.fmean(curve[-LAST:])
            runs.append({**run, "end": end, "losses": curve[::every]})
        rows += best(runs)
        print(f"{name}, {depth} layers, {rows[-1]['rate']}: {rows[-1]['end']:.2g}", flush=True)
        if depth == depths[-1] and name in DRAWN:
            drawn = [[max(loss, FLOOR) for loss in row["losses"]] for row in best(runs)]
            curves.append(Curves(name, range(0, steps, every), drawn))
    settings = {
        "width": WIDTH,
        "steps": steps,
        "inputs in a step": BATCH,
        "optimizer": "adam",
        "learning rates": list(RATES),
        "seeds": chosen.seeds,
        "seconds": round(time.perf_counter() - start),
    }
    record.write("paper_identity", settings, rows, quick=chosen.quick)
    label = "mean squared error"
    figure = comparison_figure(curves, "steps", label, logarithmic="y", marked=False, height=4.4)
    save_figure(figure, record.folder(chosen.quick) / "paper_identity")


if __name__ == "__main__":
    main()
