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
from gatepruner.pruning.orders import Order

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
# Told apart in grey and by the colour-blind, too (Okabe and Ito, 2008,
# https://jfly.uni-koeln.de/color/); each has a line style of its own.
COLORS = ("#0072B2", "#D55E00", "#6b6b6b", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
OURS, GONE = "#0b5fa5", "#d1661a"
WIDE = 5.6  # inches, a column and a half


def curve_figure(orders: Sequence[Order], removed: int | None = None) -> Figure:
    """Accuracy against blocks removed, with MACs kept on a second axis.

    Args:
        orders: one line each: the mean of its runs, with their range; the first one, if it has
            one run, with its 95 % interval.
        removed: number of blocks to mark.

    Raises:
        ValueError: there are more orders than lines that can be told apart.
    """
    if len(orders) > len(COLORS):
        raise ValueError(f"{len(orders)} orders: at most {len(COLORS)} can be told apart")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 3.6 + 0.17 * len(orders)), layout="constrained")
        axes = figure.add_subplot()
        for order, color, line in zip(orders, COLORS, LINES, strict=False):
            _draw_order(axes, order, color=color, line=line, interval=order is orders[0])
        points = orders[0].points
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
        axes.set_ylabel(f"top-1 accuracy (%), n = {points[0].accuracy.images:,}")
        numbers = [point.removed for point in points]
        axes.set_xlim(min(numbers), max(*numbers, 1))
        axes.set_ylim(0, 102)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center")
        _add_macs_axis(axes, points)
    return figure


def _draw_order(axes: Axes, order: Order, *, color: str, line: Any, interval: bool) -> None:
    x = [point.removed for point in order.points]
    accuracy = 100 * np.array([order.accuracies(index) for index in range(len(x))])
    label, low, high = order.label, accuracy.min(1), accuracy.max(1)
    if len(order.runs) == 1 and interval:
        low, high = 100 * np.array([point.accuracy.interval for point in order.points]).T
        label = f"{label}, 95 % interval"
    if len(order.runs) > 1 or interval:
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    marker = "o" if len(x) < 40 else None
    axes.plot(x, accuracy.mean(1), color=color, ls=line, marker=marker, ms=3, label=label)


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
