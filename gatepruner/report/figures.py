"""Figures: accuracy against blocks removed, and the gate of every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from gatepruner.networks.network import Block
from gatepruner.pruning.curve import Point
from gatepruner.pruning.orders import Order, noun_of
from gatepruner.report.comparison import Curves, draw
from gatepruner.report.style import COLORS, GONE, OURS, STYLE, WIDE


def curve_figure(orders: Sequence[Order], removed: int | None = None) -> Figure:
    """Accuracy against blocks removed, with the share of MACs left on a second axis.

    Args:
        orders: one line each: the mean of its runs, with their range. If the first order has one
            run, its band is the 95 % interval.
        removed: number of removed blocks to mark.

    Raises:
        ValueError: there are more orders than colours.
    """
    if len(orders) > len(COLORS):
        raise ValueError(f"cannot draw {len(orders)} orders: there are {len(COLORS)} colours")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 3.6 + 0.17 * len(orders)), layout="constrained")
        axes = figure.add_subplot()
        for number, order in enumerate(orders):
            _draw_order(axes, order, number)
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
        axes.set_xlabel(f"{noun_of(orders)}s removed")
        axes.set_ylabel(f"top-1 accuracy (%), n = {points[0].accuracy.images:,}")
        numbers = [point.removed for point in points]
        axes.set_xlim(min(numbers), max(*numbers, 1))
        axes.set_ylim(0, 102)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center")
        _add_macs_axis(axes, points)
    return figure


def _draw_order(axes: Axes, order: Order, number: int) -> None:
    x = [point.removed for point in order.points]
    runs = 100 * np.array([order.accuracies(index) for index in range(len(x))]).T
    label, band = order.label, None
    if len(order.runs) == 1 and number == 0:
        band = 100 * np.array([point.accuracy.interval for point in order.points]).T
        label = f"{label}, 95 % interval"
    draw(axes, Curves(label, x, runs.tolist()), number, band=band)


def _add_macs_axis(axes: Axes, points: Sequence[Point]) -> None:
    """Show the share of MACs left above the ticks of the x axis."""
    kept = {point.removed: 100 * point.cost.macs / points[0].cost.macs for point in points}
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    above.grid(False)
    above.spines["top"].set_visible(True)
    ticks = [tick for tick in axes.get_xticks() if tick in kept]
    above.xaxis.set_major_locator(FixedLocator(ticks))
    above.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{kept[round(tick)]:.0f}"))
    above.set_xlabel("multiply-accumulates (MACs) kept (%)")


def gates_figure(
    blocks: Sequence[Block],
    gates: Mapping[str, float],
    removed: Sequence[str],
    order: Sequence[str] = (),
) -> Figure:
    """The gate of every block in the order of depth, with stages and removed blocks marked.

    Args:
        blocks: in the order of depth.
        gates: by block.
        removed: blocks to mark as removed.
        order: blocks in the order of removal; each bar has its block's number in it above it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
        axes = figure.add_subplot()
        heights = {x: gates.get(block.name, np.nan) for x, block in enumerate(blocks, start=1)}
        gone = [x for x, block in enumerate(blocks, start=1) if block.name in removed]
        kept = [x for x in heights if x not in gone]
        for color, chosen in ((OURS, kept), (GONE, gone)):
            label = f"kept ({len(kept)})" if chosen is kept else None
            axes.bar(chosen, [heights[x] for x in chosen], color=color, width=0.75, label=label)
        for x in gone:  # a closed gate has no bar
            label = f"removed ({len(gone)})" if x == gone[0] else None
            axes.axvspan(x - 0.5, x + 0.5, color=GONE, alpha=0.25, linewidth=0, label=label)
        _mark_stages(axes, blocks)
        for x, block in enumerate(blocks, start=1):
            if block.name in order:
                place = (x, gates.get(block.name, 0.0))
                _number(axes, order.index(block.name) + 1, place, len(blocks))
        axes.set_xlim(0.3, len(blocks) + 0.7)
        axes.set_ylim(0, 1.14 * max([*gates.values(), 1e-3]))
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        numbered = "; above: its number in the order of removal" if order else ""
        axes.set_xlabel(f"block, in order of depth{numbered}")
        axes.set_ylabel("gate: factor of the branch")
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def _number(axes: Axes, number: int, place: tuple[float, float], bars: int) -> None:
    """Write a number above a bar, upright where bars are too narrow for it."""
    width = 0.85 * 72 * WIDE / bars  # points
    upright = width < 9
    axes.annotate(
        str(number),
        place,
        xytext=(0, 1.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=min(7.0, 0.85 * width if upright else 0.7 * width),
        rotation=90 if upright else 0,
    )


def _mark_stages(axes: Axes, blocks: Sequence[Block]) -> None:
    """Mark the start of each stage by a line and its name, if there are 2 to 12 stages."""
    stages = [block.stage for block in blocks]
    starts = [
        index for index, stage in enumerate(stages) if stages[index - 1] != stage or not index
    ]
    if not 1 < len(starts) <= 12:
        return
    for start, end in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(start + 0.5, color="black", linewidth=0.6, linestyle=":")
        axes.annotate(
            stages[start],
            ((start + end + 1) / 2, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=8,
        )
