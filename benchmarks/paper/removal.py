"""Accuracy against blocks removed, in several orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

import gatepruner
from gatepruner.report.comparison import Curves, comparison_figure

LOWEST, HIGHEST, RANDOM = "lowest gate first", "highest gate first", "at random"


def orders(
    checkpoint: gatepruner.Checkpoint, count: int
) -> Iterator[tuple[str, int, gatepruner.Ranking]]:
    """Every order in which the blocks go: what it is, its number, the ranking."""
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


def figure(rows: Sequence[dict[str, Any]], images: int, factor: int, what: str) -> Figure:
    """Accuracy against what is removed, `factor` of it with every block; a line for every order."""
    kinds = []
    for key in dict.fromkeys((row["kind"], row["order"]) for row in rows):
        found = [row for row in rows if (row["kind"], row["order"]) == key]
        curves = [[100 * it for it in row["accuracy"]] for row in found]
        x = [factor * removed for removed in found[0]["removed"]]
        kinds.append(Curves(", ".join(key), x, curves))
    label = f"top-1 accuracy (%), n = {images:,} images"
    return comparison_figure(kinds, f"{what} removed", label, height=4.4)
