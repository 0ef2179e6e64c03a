"""Figures that compare several kinds of curves, each a mean over runs with their range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullLocator

from gatepruner.report.style import COLORS, LINES, MARKED, MARKERS, STYLE, WIDE


@dataclass(frozen=True)
class Curves:
    """Curves of one kind.

    Attributes:
        label: for the legend.
        x: `(points,)`.
        runs: the measured values `(runs, points)`.
    """

    label: str
    x: Sequence[float]
    runs: Sequence[Sequence[float]]


def draw(axes: Axes, curves: Curves, number: int, *, band: Any = None, marked: bool = True) -> None:
    """Draw the mean of the runs, and a band: by default the range of several runs.

    Args:
        axes: where to draw.
        curves: the runs.
        number: of the line among those of the figure: says its colour, dashes and marker.
        band: `(2, points)`, lower and upper end; replaces the range.
        marked: whether points have markers, of many points every few.
    """
    step = max(1, round(len(curves.x) / MARKED))
    values, color = np.array(curves.runs, dtype=float), COLORS[number]
    axes.plot(
        curves.x,
        values.mean(0),
        color=color,
        ls=LINES[number],
        marker=MARKERS[number] if marked else None,
        markevery=(number % step, step),  # not above each other
        ms=4,
        label=curves.label,
    )
    if band is None and len(values) > 1:
        band = (values.min(0), values.max(0))
    if band is not None:
        axes.fill_between(curves.x, *band, color=color, alpha=0.15, linewidth=0)


def comparison_figure(
    kinds: Sequence[Curves],
    x_label: str,
    y_label: str,
    *,
    marked: bool = True,
    logarithmic: str = "",
    height: float = 3.6,
) -> Figure:
    """A line per kind: the mean over its runs, with their range if there are several.

    A mean is NaN where a run is.

    Args:
        kinds: at most one for each colour.
        x_label: of the x axis.
        y_label: of the y axis.
        marked: whether points have markers.
        logarithmic: the logarithmic axes: `""`, `"x"`, `"y"` or `"xy"`; a logarithmic x axis has
            its ticks at the measured points.
        height: of the figure, in inches.

    Raises:
        ValueError: there are more kinds than colours.
    """
    if len(kinds) > len(COLORS):
        raise ValueError(f"cannot draw {len(kinds)} kinds: there are {len(COLORS)} colours")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        axes = figure.add_subplot()
        for number, curves in enumerate(kinds):
            runs = len(curves.runs)
            label = curves.label if runs == 1 else f"{curves.label} (n = {runs})"
            draw(axes, replace(curves, label=label), number, marked=marked)
        if "x" in logarithmic:
            axes.set_xscale("log")
            ticks = sorted({x for curves in kinds for x in curves.x})
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(NullLocator())
        if "y" in logarithmic:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high / low < 1000:  # otherwise, powers of ten suffice
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
                axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.02)
        longest = max(len(str(line.get_label())) for line in axes.get_lines())
        figure.legend(loc="outside lower center", ncols=1 if longest > 32 else 2)
    return figure
