"""The fully-connected networks of the paper, two layers a block, 50 units, trained on MNIST.

Four experiments look at the same networks; whichever comes first trains them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import experiment

import gatepruner

KINDS = ("plain", "gated-plain", "highway", "residual", "gated-residual")
FROM_ONE = "gated-residual, k 0.05 from 1"  # the gates' rate and first k, where gates end higher
HIGHWAY = ",transform_bias=-4"  # at -2 its 100 layers hardly train
FIXED = "gated-residual, k fixed"  # at its first value: what learning the gates brings
VARIANTS: dict[str, dict[str, Any]] = {
    FROM_ONE: {"gate_learning_rate": 0.05, "initial_gate": 1.0},
    FIXED: {"gate_learning_rate": 0.0},
}
DEPTHS = (2, 10, 20, 50, 100, 200)
DEEP = 100  # the depth whose blocks are looked at one by one
RECIPE = gatepruner.Recipe(  # chosen by trials: docs/paper.md
    epochs=6,
    batch_size=256,
    optimizer="adam",
    learning_rate=0.01,
    weight_decay=0.0,
    gate_learning_rate=0.01,
    initial_gate=0.1,
    augment=False,
)


def parser(description: str | None) -> argparse.ArgumentParser:
    return experiment.parser(description, "mnist:DIR", workers=os.cpu_count() or 1)


def job(kind: str, depth: int, seed: int, chosen: argparse.Namespace) -> experiment.Job:
    """One network, trained with the recipe of all."""
    recipe = replace(RECIPE, seed=seed, epochs=1 if chosen.quick else RECIPE.epochs)
    recipe, kind = replace(recipe, **VARIANTS.get(kind, {})), kind.partition(",")[0]
    name = f"{kind}-fc{depth}{HIGHWAY if kind == 'highway' else ''}"
    return experiment.Job(name, recipe, chosen.data, 2000 if chosen.quick else None)


def trained(
    chosen: argparse.Namespace, kinds: Sequence[str], depths: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for every kind, depth and seed; what is not there is trained."""
    wanted = [
        (kind, depth, seed)
        for depth in sorted(depths, reverse=True)  # the longest first, so that no worker is idle
        for kind in kinds
        for seed in range(chosen.seeds)
    ]
    found = experiment.train([job(*each, chosen) for each in wanted], chosen)
    rows = [
        {"kind": kind, "depth": depth, **row}
        for (kind, depth, _), row in zip(wanted, found, strict=True)
    ]
    return sorted(rows, key=lambda row: (kinds.index(row["kind"]), row["depth"], row["seed"]))


def checkpoints(chosen: argparse.Namespace, kind: str, depth: int) -> list[gatepruner.Checkpoint]:
    """The trained networks of one kind and depth, one for each seed."""
    trained(chosen, [kind], [depth])
    jobs = [job(kind, depth, seed, chosen) for seed in range(chosen.seeds)]
    return experiment.checkpoints(jobs, chosen)
