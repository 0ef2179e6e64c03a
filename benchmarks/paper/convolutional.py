"""The gated convolutional networks, trained on CIFAR-10; two experiments look at them.

The paper's network of 24 layers has 12 pre-activation blocks in three stages; all three stages
begin with a block that raises the dimension. Here it is that network with a tenth of its width:
8 channels in the stem, then 16, 32 and 64.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import experiment

import gatepruner

DATA = "imagefolder:DIR"
TWELVE_BLOCKS = "gated-wrn-28-1,stem=8"
RESNET56 = "gated-resnet56"
RECIPE = gatepruner.Recipe(epochs=10)  # chosen with cifar_trials.py


def job(network: str, seed: int, chosen: argparse.Namespace) -> experiment.Job:
    epochs, limit = (1, 512) if chosen.quick else (chosen.epochs, None)
    recipe = replace(RECIPE, seed=seed, epochs=epochs)
    return experiment.Job(network, recipe, chosen.data, limit)


def parser(description: str | None) -> argparse.ArgumentParser:
    found = experiment.parser(description, DATA)
    found.add_argument("--epochs", type=int, default=RECIPE.epochs, help="of training")
    return found


def trained(
    chosen: argparse.Namespace, network: str, seeds: int
) -> tuple[list[dict[str, Any]], list[gatepruner.Checkpoint]]:
    """A row and a network for every seed; what is not there is trained."""
    jobs = [job(network, seed, chosen) for seed in range(seeds)]
    folder = experiment.work(chosen.quick)
    rows = experiment.train(jobs, folder, device=chosen.device)
    return rows, [experiment.checkpoint(each, folder) for each in jobs]


def unseen(chosen: argparse.Namespace) -> gatepruner.Images:
    """val and test together."""
    return experiment.unseen(chosen.data).spread(200 if chosen.quick else None)
