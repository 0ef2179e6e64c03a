"""Settings of gate learning, each changed alone: what they do to accuracy.

No test image is looked at. Accuracy is counted on training images that the gates were not learned
from, shifted at random and with noise, so that the network, which was trained on them, errs about
as often as on images that it has never seen. Statistics are estimated anew at every count.

usage: python benchmarks/gate_trials.py --checkpoint FILE --data DIR
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import record
import torch

import gatepruner
from gatepruner.images.views import augmented

COUNTS = (3, 5, 8, 10, 13)
STATISTICS = 1000  # training images that statistics are estimated on
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "temperature 2": {"temperature": 2.0},
    "no penalty": {"penalty": 0.0},
    "cross-entropy with labels": {"labels": True},
    "scales and shifts left alone": {"norm_learning_rate": 0.0},
    "scales and shifts at half the rate": {"norm_learning_rate": 0.01},
    "scales and shifts at twice the rate": {"norm_learning_rate": 0.04},
    "gates at 2.5 times the rate": {"learning_rate": 0.05},
}


def made_hard(images: gatepruner.Images, noise: float) -> gatepruner.Images:
    """The images shifted and mirrored at random, with noise of that deviation, in grey levels."""
    assert images.pixels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = augmented(images.pixels).float()
        pixels = (pixels + noise * torch.randn(pixels.shape)).round().clamp(0, 255).byte()
    source = f"{images.source}, shifted and with noise"
    return gatepruner.Images(images.labels, images.classes, images.shape, source, pixels)


def tried(
    whole: gatepruner.Checkpoint,
    train: gatepruner.Images,
    hard: gatepruner.Images,
    recipe: gatepruner.GateRecipe,
) -> dict[str, Any]:
    """Accuracy at every count, and the time that learning took."""
    start = time.perf_counter()
    gated = gatepruner.learn_gates(whole, train, recipe, device="cpu")
    seconds, found = time.perf_counter() - start, {}
    for count in COUNTS:
        if count <= len(gated.path):
            small = gatepruner.follow(gated, gatepruner.rank(gated).first(count))
            small = gatepruner.recalibrate(small, train.spread(STATISTICS), device="cpu")
            found[str(count)] = gatepruner.accuracy(small, hard, device="cpu").accuracy
    return {"seconds": seconds, "accuracy": found}


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--checkpoint", required=True, type=Path, help="a trained ResNet")
    options.add_argument("--data", required=True, help="folder with train/CLASS")
    options.add_argument("--steps", type=int, default=25, help="after each block")
    options.add_argument("--noise", type=float, default=6.0, help="deviation, in grey levels")
    chosen = options.parse_args()
    limit, blocks, steps = (256, 3, 1) if chosen.quick else (12_000, max(COUNTS), chosen.steps)
    whole = gatepruner.load(chosen.checkpoint)
    shape, spec = whole.network.base.input_shape, f"imagefolder:{chosen.data}"
    every = gatepruner.load_images(spec, shape, split="train", limit=limit)
    train, others = every.held_out(limit // 6, 0)
    assert others is not None
    hard = made_hard(others, chosen.noise)
    rows = []
    for name, changes in VARIANTS.items():
        recipe = gatepruner.GateRecipe(blocks=blocks, steps=steps, **changes)
        rows.append({"variant": name, **tried(whole, train, hard, recipe)})
        print(rows[-1], flush=True)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "steps after each block": steps,
        "learned from": len(train),
        "measured on": len(hard),
        "noise": chosen.noise,
        "whole": gatepruner.accuracy(whole, hard, device="cpu").accuracy,
        "seed": 0,
    }
    record.write("gate_trials", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
