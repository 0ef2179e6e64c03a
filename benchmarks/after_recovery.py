"""Which score of blocks tells the accuracy after recovery: rank correlations over random plans.

Plans of equal size are drawn at random. Each is removed, recalibrated and recovered in the same
short way: by features, from the same few pictures without their labels. Accuracy after recovery is
measured on images that nothing was chosen on. A criterion's score of a plan is the mean rank of
its blocks; Spearman's correlation with the accuracy is positive if a higher score means less harm.
The interval is a bootstrap over the plans. Compared are also

- before: agreement with the whole network after removal and recalibration, before recovery;
- recoverability: the distance of the features that is left when a block alone is removed and
  the network recovered for a few steps; see `practise.py`.

Finished plans and scores are kept in `results/after_recovery.work/`; a rerun continues there.

usage: python benchmarks/after_recovery.py --checkpoint FILE --data DIR [--plans 40]
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import torch
from practise import recoverability

import gatepruner

CRITERIA = ("leave-one-out", "taylor", "cosine", "cka", "magnitude")
BOOTSTRAPS = 2000


def ranks(values: Sequence[float]) -> torch.Tensor:
    """The rank of every value, `(N,)`; ties share their mean rank."""
    x = torch.tensor(values, dtype=torch.float64)
    return (x[:, None] > x).sum(1) + 0.5 * ((x[:, None] == x).sum(1) - 1)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


def interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the rank correlation."""
    draw, found = random.Random(0), []
    for _ in range(BOOTSTRAPS):
        chosen = draw.choices(range(len(one)), k=len(one))
        found.append(spearman([one[i] for i in chosen], [other[i] for i in chosen]))
    found.sort()
    return found[int(0.025 * BOOTSTRAPS)], found[int(0.975 * BOOTSTRAPS)]


class Study:
    """The whole network, its pictures, and how plans are recovered."""

    def __init__(self, chosen: Any, folder: Path) -> None:
        self.chosen, self.folder = chosen, folder
        limits = {"train": chosen.pictures, chosen.split: 100 if chosen.quick else chosen.images}
        self.whole, self.pictures, self.images = record.loaded(chosen, **limits)
        self.how: dict[str, Any] = {"device": chosen.device}
        folder.mkdir(parents=True, exist_ok=True)

    def without(self, plan: Sequence[str]) -> gatepruner.Checkpoint:
        """The network without these blocks, recalibrated."""
        small = gatepruner.remove(self.whole, plan)
        return gatepruner.recalibrate(small, self.pictures, whole=self.whole, **self.how)

    def recovered(self, small: gatepruner.Checkpoint, steps: int) -> gatepruner.Checkpoint:
        """The network after so many steps of recovery by features."""
        batch = min(64, len(self.pictures))
        epochs = max(1, round(steps / (len(self.pictures) // batch)))
        recipe = replace(gatepruner.FINE_TUNING, epochs=epochs, batch_size=batch)
        return gatepruner.finetune(small, self.pictures, recipe, teacher=self.whole, **self.how)

    def plan(self, index: int) -> dict[str, Any]:
        """A random plan, before and after its recovery."""
        names = self.whole.network.removable
        plan = sorted(random.Random(index).sample(names, self.chosen.blocks))
        small, start = self.without(plan), time.time()
        before = gatepruner.agreement(small, self.whole, self.images, **self.how)
        after = gatepruner.accuracy(
            self.recovered(small, self.chosen.steps), self.images, **self.how
        )
        print(index, f"{before.agreement:.3f} {after.accuracy:.4f}", flush=True)
        return {
            "plan": plan,
            "before": before.agreement,
            "distance": before.distance,
            "accuracy": after.accuracy,
            "seconds": time.time() - start,
        }

    def scores(self, criterion: str) -> dict[str, Any]:
        """The rank of every block by a criterion, and how long it took."""
        start, whole = time.time(), self.whole
        if criterion == "recoverability":
            left = recoverability(whole, self.pictures, self.chosen.single_steps, **self.how)
            order = sorted(left, key=left.__getitem__)
        elif criterion.startswith("gates"):
            recipe = gatepruner.GateRecipe(
                batch_size=min(128, len(self.pictures)),
                match=criterion.partition(", ")[2] or "logits",
                steps=2 if self.chosen.quick else self.chosen.gate_steps,
            )
            gated = gatepruner.learn_gates(whole, self.pictures, recipe, **self.how)
            order = list(gatepruner.rank(gated).names)
        else:
            order = list(gatepruner.rank(whole, criterion, self.pictures, **self.how).names)
        print(criterion, order[:6], round(time.time() - start), "s", flush=True)
        places = {name: place for place, name in enumerate(order)}
        return {"places": places, "seconds": time.time() - start}


def main() -> None:
    options = record.parser(__doc__, "train and the split to measure on")
    options.add_argument("--name", default="after_recovery", help="of the result")
    options.add_argument("--split", default="val", help="images to measure on")
    options.add_argument("--plans", type=int, default=40)
    options.add_argument("--blocks", type=int, default=12, help="removed by every plan")
    options.add_argument("--pictures", type=int, default=500, help="to learn from")
    options.add_argument("--images", type=int, default=5000, help="to measure accuracy on")
    options.add_argument("--steps", type=int, default=60, help="of a plan's recovery")
    options.add_argument("--gate-steps", type=int, default=20, help="after the removal of a block")
    options.add_argument("--single-steps", type=int, default=14, help="of a block's recovery")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.plans, chosen.pictures, chosen.steps, chosen.single_steps = 4, 64, 1, 1
    folder = record.folder(chosen.quick) / f"{chosen.name}.work"
    study = Study(chosen, folder)
    names = ("gates", "gates, features", "recoverability", *CRITERIA)
    scores = {
        name: record.once(folder / f"{name}.json", lambda name=name: study.scores(name))
        for name in names
    }
    plans = [
        record.once(folder / f"plan{index}.json", lambda index=index: study.plan(index))
        for index in range(chosen.plans)
    ]
    accuracy = [plan["accuracy"] for plan in plans]
    told = {"before": [plan["before"] for plan in plans]}
    told["distance before"] = [-plan["distance"] for plan in plans]
    for name, score in scores.items():
        told[name] = [-sum(score["places"][block] for block in plan["plan"]) for plan in plans]
    rows = []
    for name, values in told.items():
        low, high = interval(values, accuracy)
        row = {"score": name, "correlation": spearman(values, accuracy), "low": low, "high": high}
        rows.append({**row, "seconds": scores.get(name, {}).get("seconds")})
        print(row, flush=True)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "plans": len(plans),
        "blocks removed": f"{chosen.blocks} of {len(study.whole.network.removable)}",
        "pictures": len(study.pictures),
        "images": f"{len(study.images)} of {chosen.split}",
        "steps": chosen.steps,
        "accuracy from": round(min(accuracy), 4),
        "to": round(max(accuracy), 4),
    }
    record.write(chosen.name, settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
