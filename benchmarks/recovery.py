"""Accuracy after recovery: what is matched, from which state, in which order blocks are removed.

Every trial removes the first blocks of an order from one trained network and recovers all weights
with the library's recipe for fine-tuning, the whole network as its teacher. All trials have the
same images, epochs and batches; accuracy is measured on val and test together, which nothing was
chosen on.

state   plain: the network's own weights, recalibrated; gates: as `follow` leaves them, folded and
        recalibrated
match   none (no recovery), labels (no teacher), logits (0.9 of the loss; the rest are labels),
        features, both
order   gates (learned from the same images, at most 10,000, by logits or by features),
        leave-one-out (greedy), random

Finished trials are kept in `results/recovery.work/`; a rerun with the same options continues there.

usage: python benchmarks/recovery.py --checkpoint FILE --data DIR [--images 20000] [--epochs 2 8]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from time import time
from typing import Any, TypeVar

import matplotlib
import record
from columns import grouped
from matplotlib.figure import Figure
from typing_extensions import Self

import gatepruner
from gatepruner.report.style import GONE, OURS, STYLE, save_figure

GATE_IMAGES, STATISTICS, CANDIDATES = 10_000, 2000, 500


@dataclass(frozen=True)
class Trial:
    """One recovery.

    Attributes:
        removed: number of blocks.
        match: what is matched; see above.
        state: from which recovery begins.
        order: of removal.
        seed: of the order and of recovery.
        images: to learn from.
        epochs: of recovery; `None` for those of the recipe.
    """

    removed: int
    match: str = "features"
    state: str = "plain"
    order: str = "gates by features"
    seed: int = 0
    images: int = 20_000
    epochs: int | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        values = [str(value) for value in asdict(self).values() if value is not None]
        return "-".join(values).replace(" ", "_")


AnyRecipe = TypeVar("AnyRecipe", gatepruner.Recipe, gatepruner.GateRecipe)


def batched(recipe: AnyRecipe, images: gatepruner.Images) -> AnyRecipe:
    """The recipe with batches of no more images than there are."""
    return replace(recipe, batch_size=min(recipe.batch_size, len(images)))


class Bench:
    """A whole network, its images, and the folder that keeps what is finished."""

    def __init__(
        self,
        whole: gatepruner.Checkpoint,
        train: gatepruner.Images,
        test: gatepruner.Images,
        folder: Path,
        recipe: gatepruner.Recipe,
        gating: gatepruner.GateRecipe,
        device: str = "cpu",
    ) -> None:
        self.whole, self.train, self.test = whole, train, test
        self.folder, self.recipe, self.gating, self.device = folder, recipe, gating, device
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(
        cls,
        chosen: argparse.Namespace,
        name: str,
        recipe: gatepruner.Recipe,
        gating: gatepruner.GateRecipe,
    ) -> Self:
        """The bench of an image folder with train, and with val and test to measure on."""
        most = 100 if chosen.quick else None
        whole, train, val, test = record.loaded(chosen, train=None, val=most, test=most)
        folder = record.folder(chosen.quick) / f"{name}.work"
        return cls(whole, train, val.joined(test), folder, recipe, gating, chosen.device)

    def write(
        self, name: str, chosen: argparse.Namespace, trials: Iterable[Trial], **settings: Any
    ) -> None:
        """Run trials, and write their result and its figure."""
        rows = self.run(trials)
        accuracy = gatepruner.accuracy(self.whole, self.test, device=self.device).accuracy
        about = {
            "checkpoint": chosen.checkpoint.name,
            "whole": round(accuracy, 4),
            "test images": len(self.test),
            "learning rate": self.recipe.peak(fresh=False),
            "batch size": self.recipe.batch_size,
        }
        record.write(name, about | settings, rows, quick=chosen.quick)
        draw(rows, accuracy, record.folder(chosen.quick) / name)

    def run(self, trials: Iterable[Trial]) -> list[dict[str, Any]]:
        """The row of every trial."""
        rows = []
        for trial in trials:
            path = self.folder / f"{trial.name}.json"
            kept = record.once(path, lambda trial=trial: self.row(trial))
            rows.append({**asdict(trial), **kept})
            print(json.dumps(rows[-1]), flush=True)
        return rows

    def row(self, trial: Trial) -> dict[str, Any]:
        """A trial and what came of it."""
        small, start = self.start(trial), time()
        images, held_out = self.split(trial)
        if trial.match != "none":
            small = gatepruner.finetune(
                small,
                images,
                batched(self.recipe_of(trial), images),
                teacher=self.whole if trial.match != "labels" else None,
                validation=held_out,
                device=self.device,
            )
        seconds = time() - start
        agreed = gatepruner.agreement(small, self.whole, self.test, device=self.device)
        row = {**asdict(trial), "seconds": seconds, "accuracy": agreed.accuracy}
        kept = small.notes.get("kept", {}) if held_out is not None else {}
        return {
            **row,
            **agreed.to_json(),
            "correct": agreed.correct,
            "macs": gatepruner.count(small.network).macs,
            "kept_step": kept.get("step"),
        }

    def recipe_of(self, trial: Trial) -> gatepruner.Recipe:
        """The recipe of a trial's recovery."""
        match = trial.match.partition(",")[0]
        recipe = replace(self.recipe, seed=trial.seed)
        if trial.epochs is not None:
            recipe = replace(recipe, epochs=trial.epochs)
        return recipe if match == "labels" else replace(recipe, match=match)

    def split(self, trial: Trial) -> tuple[gatepruner.Images, gatepruner.Images | None]:
        """Images to learn from, and those held out to keep the best state, if any."""
        return self.train.spread(trial.images), None

    def start(self, trial: Trial) -> gatepruner.Checkpoint:
        """The network that recovery begins with."""
        if trial.order.startswith("gates"):
            gated = self.gated(trial)
            plan = gatepruner.rank(gated).first(trial.removed)
        else:
            plan = self.order(trial)[: trial.removed]
        if trial.state == "gates":
            small = gatepruner.fold_gates(gatepruner.follow(gated, plan))
        else:
            small = gatepruner.remove(self.whole, plan)
        if trial.state == "statistics kept":
            return small
        statistics = self.train.spread(min(trial.images, STATISTICS))
        return gatepruner.recalibrate(small, statistics, whole=self.whole, device=self.device)

    def gated(self, trial: Trial) -> gatepruner.Checkpoint:
        """The network with gates learned from the images of a trial."""
        match = trial.order.partition("by ")[2]
        path = self.folder / f"gated-{match}-{trial.images}-{trial.seed}.pt"
        if not path.exists():
            images = self.train.spread(min(trial.images, GATE_IMAGES))
            recipe = batched(replace(self.gating, match=match, seed=trial.seed), images)
            gated = gatepruner.learn_gates(self.whole, images, recipe, device=self.device)
            gatepruner.save(gated, path)
        return gatepruner.load(path)

    def order(self, trial: Trial) -> list[str]:
        """The names of the blocks in another order than that of the gates."""
        images = self.train.spread(min(trial.images, CANDIDATES))
        by = "greedy" if trial.order == "leave-one-out" else trial.order
        path = self.folder / f"{trial.order}-{trial.images}-{trial.seed}-order.json"

        def ranked() -> dict[str, Any]:
            ranking = gatepruner.rank(self.whole, by, images, seed=trial.seed, device=self.device)
            return {"names": ranking.names}

        return list(record.once(path, ranked)["names"])


def draw(rows: Sequence[Mapping[str, Any]], whole: float, stem: Path) -> None:
    """Accuracy of every way, with the mean and range over seeds; a panel for every task."""
    tasks = grouped(rows, itemgetter("images", "removed", "epochs"))
    ways = grouped(rows, itemgetter("order", "state", "match"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(2.2 * len(tasks) + 2.6, 0.24 * len(ways) + 1.1), layout="constrained"
        )
        every = figure.subplots(1, len(tasks), sharey=True, squeeze=False)
        for axes, ((images, removed, epochs), found) in zip(every.flat, tasks.items(), strict=True):
            axes.axvline(100 * whole, color="#8a8a8a", linestyle="--", linewidth=1)
            for place, way in enumerate(ways):
                values = [
                    100 * row["accuracy"]
                    for row in found
                    if (row["order"], row["state"], row["match"]) == way
                ]
                if values:
                    color = OURS if way[2].startswith(("features", "MiR")) else GONE
                    axes.plot(values, [place] * len(values), "-", color=color, linewidth=1)
                    axes.plot(fmean(values), place, "o", color=color, markersize=4)
            passes = f", {epochs} epochs" if epochs else ""
            axes.set_title(f"{removed} blocks, {images:,} images{passes}", fontsize=9)
            axes.set_xlabel("accuracy (%)")
        told = [len(set(column)) > 1 for column in zip(*ways, strict=True)]  # not what is the same
        labels = ["; ".join([*itertools.compress(way, told)][::-1]) for way in ways]
        every[0, 0].set_yticks(range(len(ways)), labels, fontsize=8)
        every[0, 0].invert_yaxis()
    save_figure(figure, stem)


def trials(counts: Sequence[int], images: int, epochs: Sequence[int], seeds: int) -> list[Trial]:
    """What is compared.

    With the first number of blocks and of epochs: losses and states in the gates' order, then
    orders by features; with the others: features alone, and the gates' state without recovery.
    """
    first = Trial(counts[0], images=images, epochs=epochs[0])
    found = [
        replace(first, match=match, state=state)
        for match, state in (
            *itertools.product(("features", "none"), ("gates", "plain")),
            *itertools.product(("logits", "both", "labels"), ("gates",)),
        )
    ]
    found += [
        replace(first, order="gates by logits"),
        replace(first, order="gates by logits", match="none", state="gates"),
        replace(first, order="leave-one-out"),
    ]
    found += [replace(first, order="random", seed=seed) for seed in range(seeds)]
    for number in counts[1:]:
        found.append(replace(first, removed=number))
        found.append(replace(first, removed=number, match="none", state="gates"))
    found += [replace(first, epochs=number) for number in epochs[1:]]
    return found


def main() -> None:
    options = record.parser(__doc__, "train, val and test")
    options.add_argument("--images", type=int, default=20_000, help="to learn from")
    options.add_argument("--epochs", type=int, nargs="+", default=[2, 8], help="of recovery")
    options.add_argument("--removed", type=int, nargs="+", default=[13, 16], help="blocks")
    options.add_argument("--seeds", type=int, default=3, help="random orders")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.images, chosen.epochs, chosen.removed, chosen.seeds = 256, [1, 2], [2, 3], 1
    gating = gatepruner.GateRecipe(blocks=max(chosen.removed), steps=2 if chosen.quick else 50)
    bench = Bench.of(chosen, "recovery", gatepruner.FINE_TUNING, gating)
    tried = trials(chosen.removed, chosen.images, chosen.epochs, chosen.seeds)
    bench.write("recovery", chosen, tried, images=chosen.images)


if __name__ == "__main__":
    main()
