"""Accuracy against blocks removed, in several orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import save_figure

LOWEST, HIGHEST, RANDOM = "lowest gate first", "highest gate first", "at random"


def orders(
    checkpoint: gatepruner.Checkpoint, count: int
) -> Iterator[tuple[str, int, gatepruner.Ranking]]:
    """Every order in which the blocks are removed: what it is, its number, the ranking."""
    if len(set(checkpoint.known_gates.values())) > 1:  # equal gates tell no order
        yield LOWEST, 0, gatepruner.rank(checkpoint)
        yield HIGHEST, 0, gatepruner.rank(checkpoint).reversed()
    for number in range(count):
        yield RANDOM, number, gatepruner.rank(checkpoint, "random", seed=number)


def measured(
    checkpoint: gatepruner.Checkpoint,
    images: gatepruner.Images,
    counts: Sequence[int],
    random_orders: int,
    device: str,
) -> Iterator[dict[str, Any]]:
    """A row for every order: accuracy at every count of removed blocks."""
    for order, number, ranking in orders(checkpoint, random_orders):
        points = gatepruner.sweep(checkpoint, images, ranking, counts=counts, device=device)
        accuracy = [point.accuracy.accuracy for point in points]
        yield {"order": order, "number": number, "removed": list(counts), "accuracy": accuracy}


def draw(rows: Sequence[dict[str, Any]], what: str, images: int, stem: Path) -> None:
    """Accuracy against blocks or layers (two of a block) removed; a line for every order."""
    curves, factor = [], 2 if what == "layers" else 1
    for key in dict.fromkeys((row["kind"], row["order"]) for row in rows):
        found = [row for row in rows if (row["kind"], row["order"]) == key]
        runs = [[100 * accuracy for accuracy in row["accuracy"]] for row in found]
        x = [factor * removed for removed in found[0]["removed"]]
        curves.append(Curves(", ".join(key), x, runs))
    label = f"top-1 accuracy (%), n = {images:,} images"
    save_figure(comparison_figure(curves, f"{what} removed", label, height=4.4), stem)
