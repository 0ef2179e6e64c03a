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
RECIPE = gatepruner.Recipe(epochs=10)  # the defaults: trials gave no reason to change them


def parser(description: str | None) -> argparse.ArgumentParser:
    options = experiment.parser(description, DATA)
    options.add_argument("--epochs", type=int, default=RECIPE.epochs, help="of training")
    return options


def trained(
    chosen: argparse.Namespace, network: str, seeds: int
) -> tuple[list[dict[str, Any]], list[gatepruner.Checkpoint]]:
    """A row and a network for every seed; what is not there is trained."""
    epochs, limit = (1, 512) if chosen.quick else (chosen.epochs, None)
    recipes = [replace(RECIPE, seed=seed, epochs=epochs) for seed in range(seeds)]
    jobs = [experiment.Job(network, recipe, chosen.data, limit) for recipe in recipes]
    return experiment.train(jobs, chosen), experiment.checkpoints(jobs, chosen)
