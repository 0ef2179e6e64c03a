"""The figure that compares: curves of several kinds, each a mean over runs with their range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullLocator

from gatepruner.report.style import COLORS, LINES, STYLE, WIDE


@dataclass(frozen=True)
class Curves:
    """Curves of one kind.

    Attributes:
        label: what they are of.
        x: where they were measured `(points,)`.
        runs: what was found in every run `(runs, points)`.
        marker: of every point, if any.
    """

    label: str
    x: Sequence[float]
    runs: Sequence[Sequence[float]]
    marker: str | None = "o"


def draw(
    axes: Axes, curves: Curves, *, color: str, line: Any, band: Any = None, alpha: float = 0.15
) -> None:
    """Draw the mean of the runs, and their range where there are several, or another band.

    Args:
        axes: where.
        curves: the runs.
        color: of line and band.
        line: its style.
        band: `(2, points)`, lower and upper end, instead of the range.
        alpha: opacity of the band.
    """
    found = np.array(curves.runs, dtype=float)
    axes.plot(
        curves.x,
        found.mean(0),
        color=color,
        ls=line,
        marker=curves.marker,
        ms=3,
        label=curves.label,
    )
    if band is None and len(found) > 1:
        band = (found.min(0), found.max(0))
    if band is not None:
        axes.fill_between(curves.x, *band, color=color, alpha=alpha, linewidth=0)


def comparison_figure(
    kinds: Sequence[Curves],
    x_label: str,
    y_label: str,
    *,
    marked: bool = True,
    logarithmic: str = "",
    height: float = 3.6,
) -> Figure:
    """Means over runs, with their range where there are several.

    Where a run has no number, its mean has none.

    Args:
        kinds: one line each.
        x_label: what is on the lower axis.
        y_label: what is on the left axis.
        marked: whether every point has a marker.
        logarithmic: the axes that are: `"x"`, `"y"` or `"xy"`; on such a lower axis the ticks are
            where something was measured.
        height: of the figure, in inches.

    Raises:
        ValueError: there are more kinds than lines that can be told apart.
    """
    if len(kinds) > len(COLORS):
        raise ValueError(f"{len(kinds)} kinds: at most {len(COLORS)} can be told apart")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        axes = figure.add_subplot()
        for curves, color, line in zip(kinds, COLORS, LINES, strict=False):
            runs = len(curves.runs)
            label = curves.label if runs == 1 else f"{curves.label} (n = {runs})"
            shown = replace(curves, label=label, marker=curves.marker if marked else None)
            draw(axes, shown, color=color, line=line)
        if "x" in logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({x for it in kinds for x in it.x})))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(NullLocator())
        if "y" in logarithmic:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high / low < 1000:  # else powers of ten are enough
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
                axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.02)
        longest = max(len(str(line.get_label())) for line in axes.get_lines())
        figure.legend(loc="outside lower center", ncols=1 if longest > 32 else 2)
    return figure
