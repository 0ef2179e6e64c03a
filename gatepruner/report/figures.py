"""The two figures: accuracy against blocks removed, and the gate of every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from gatepruner.networks.network import Block
from gatepruner.pruning.curve import Point

STYLE: Any = {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "gatepruner",
}
OURS, BASELINE, GONE = "#0b5fa5", "#8a8a8a", "#d1661a"
WIDE = 5.6  # inches, a column and a half


def curve_figure(
    points: Sequence[Point],
    baseline: Sequence[Sequence[Point]],
    *,
    criterion: str,
    removed: int | None = None,
) -> Figure:
    """Accuracy against blocks removed, with MACs kept on a second axis.

    Args:
        points: of the ranking, with none removed first.
        baseline: curves of random orders; their mean and range are shown.
        criterion: name of the ranking, or another word for the order.
        removed: number of blocks to mark.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 3.9), layout="constrained")
        axes = figure.add_subplot()
        x = [point.removed for point in points]
        low, high = zip(*(point.accuracy.interval for point in points), strict=True)
        if baseline:
            _draw_baseline(axes, baseline)
        axes.fill_between(x, _percent(low), _percent(high), color=OURS, alpha=0.2, linewidth=0)
        order = {"gate": "lowest gate first", "depth": "last block first"}.get(criterion, criterion)
        label = f"{order}, 95 % interval (n = {points[0].accuracy.images:,})"
        accuracies = _percent([point.accuracy.accuracy for point in points])
        marker = "o" if len(points) < 40 else None
        axes.plot(x, accuracies, color=OURS, marker=marker, markersize=3, label=label)
        if removed is not None:
            axes.axvline(removed, color=GONE, linestyle="--", linewidth=1)
            axes.annotate(
                f"{removed} removed",
                (removed, 0.05),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                color=GONE,
            )
        axes.set_xlabel("blocks removed")
        axes.set_ylabel("top-1 accuracy (%)")
        axes.set_xlim(min(x), max(max(x), 1))
        axes.set_ylim(0, 102)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center")
        _add_macs_axis(axes, points)
    return figure


def _percent(fractions: Sequence[float]) -> list[float]:
    return [100 * fraction for fraction in fractions]


def _draw_baseline(axes: Axes, baseline: Sequence[Sequence[Point]]) -> None:
    x = [point.removed for point in baseline[0]]
    found = 100 * np.array([[point.accuracy.accuracy for point in curve] for curve in baseline])
    axes.fill_between(x, found.min(0), found.max(0), color=BASELINE, alpha=0.25, linewidth=0)
    orders = f"{len(baseline)} orders" if len(baseline) > 1 else "1 order"
    axes.plot(
        x, found.mean(0), color=BASELINE, linestyle="--", label=f"random: mean, range of {orders}"
    )


def _add_macs_axis(axes: Axes, points: Sequence[Point]) -> None:
    """Above, what share of the MACs is left where the lower axis has its ticks."""
    kept = {point.removed: 100 * point.cost.macs / points[0].cost.macs for point in points}
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    above.grid(False)
    above.spines["top"].set_visible(True)
    above.xaxis.set_major_locator(FixedLocator([at for at in axes.get_xticks() if at in kept]))
    above.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{kept[round(at)]:.0f}"))
    above.set_xlabel("MACs kept (%)")


def gates_figure(
    blocks: Sequence[Block], gates: Mapping[str, float], removed: Sequence[str]
) -> Figure:
    """The gate of every block in the order of depth, stages marked, removed ones shown."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
        axes = figure.add_subplot()
        x = range(1, len(blocks) + 1)
        gone = [at for at, block in zip(x, blocks, strict=True) if block.name in removed]
        kept = [at for at in x if at not in gone]
        for color, chosen in ((OURS, kept), (GONE, gone)):
            heights = [gates.get(blocks[at - 1].name, np.nan) for at in chosen]
            label = f"kept ({len(kept)})" if chosen is kept else None
            axes.bar(chosen, heights, color=color, width=0.75, label=label)
        for at in gone:  # a closed gate has no bar
            label = f"removed ({len(gone)})" if at == gone[0] else None
            axes.axvspan(at - 0.5, at + 0.5, color=GONE, alpha=0.25, linewidth=0, label=label)
        _mark_stages(axes, blocks)
        axes.set_xlim(0.3, len(blocks) + 0.7)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("block, in order of depth")
        axes.set_ylabel("gate g = ReLU(k)")
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def _mark_stages(axes: Axes, blocks: Sequence[Block]) -> None:
    """A line where a stage begins and its name above it, where there are several."""
    stages = [block.stage for block in blocks]
    starts = [
        index for index, stage in enumerate(stages) if stages[index - 1] != stage or not index
    ]
    if not 1 < len(starts) <= 12:
        return
    for start, end in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(start + 0.5, color="black", linewidth=0.6, linestyle=":")
        middle = ((start + end + 1) / 2, 1.01)
        place = ("data", "axes fraction")
        axes.annotate(stages[start], middle, xycoords=place, ha="center", va="bottom", fontsize=8)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as `stem.png` (200 dpi) and `stem.svg`."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), dpi=200)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
