"""The picture of `channels.md`: a branch before and after some of its channels are cut out.

usage: python docs/channels_picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from gatepruner.report.style import STYLE, save_figure

OPEN, CLOSED, STREAM = "#0b5fa5", "#c9c9c9", "#555555"
SHUT = {2, 3, 6}  # of eight channels


def layer(axes: Axes, x: float, y: float, text: str, width: float = 2.6) -> None:
    """A layer as a box."""
    axes.add_patch(Rectangle((x, y), width, 0.55, facecolor="#eef2f6", edgecolor=STREAM))
    axes.text(x + width / 2, y + 0.27, text, ha="center", va="center", fontsize=8)


def channels(axes: Axes, x: float, y: float, shut: set[int], count: int = 8) -> None:
    """The values of the channels between two layers, each in front of its gate."""
    step = 2.6 / count
    for number in range(count):
        color = CLOSED if number in shut else OPEN
        left = x + (number + 0.5) * step
        axes.plot([left, left], [y, y + 1.15], color=color, linewidth=2.2, solid_capstyle="butt")
        if number in shut:
            axes.plot([left - 0.1, left + 0.1], [y + 0.3, y + 0.3], color="#b3261e", linewidth=2)


def branch(axes: Axes, title: str, shut: set[int], sizes: tuple[str, str], count: int) -> None:
    """A branch beside its shortcut.

    Args:
        axes: to draw on.
        title: what is drawn.
        shut: numbers of the channels that are closed.
        sizes: the two convolutions in words.
        count: of channels between them.
    """
    axes.text(2.5, 5.85, title, fontsize=9, ha="center", va="center")
    x = 1.2
    layer(axes, x, 4.4, sizes[0])
    layer(axes, x, 3.75, "batch norm, ReLU")
    channels(axes, x, 2.6, shut, count)
    layer(axes, x, 2.05, sizes[1])
    layer(axes, x, 1.4, "batch norm")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "color": STREAM}
    middle = x + 1.3
    for start, end in (((middle, 5.6), (middle, 4.95)), ((middle, 1.4), (middle, 0.75))):
        axes.add_patch(FancyArrowPatch(start, end, **arrow))
    axes.plot([middle, 0.4, 0.4, middle - 0.2], [5.4, 5.4, 0.55, 0.55], color=STREAM, linewidth=1)
    axes.text(middle, 0.55, "+", ha="center", va="center", fontsize=13)
    axes.text(0.25, 3.0, "shortcut", rotation=90, ha="center", va="center", fontsize=8)
    axes.text(x + 2.75, 3.15, f"{count} channels" if not shut else "gates", fontsize=8, va="center")
    if shut:
        axes.text(x + 2.75, 2.85, f"{len(shut)} closed", fontsize=8, va="center", color="#b3261e")
    axes.set_xlim(0, 5.4)
    axes.set_ylim(0.2, 6.1)
    axes.set_aspect("equal")
    axes.axis("off")


def main() -> None:
    """Draw both and write `images/channels`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.6), layout="constrained")
        before, after = figure.subplots(1, 2)
        sizes = ("convolution 16 → 8", "convolution 8 → 16")
        branch(before, "the whole network, three gates at 0", SHUT, sizes, 8)
        left = 8 - len(SHUT)
        sizes = (f"convolution 16 → {left}", f"convolution {left} → 16")
        branch(after, "narrowed: the same numbers", set(), sizes, left)
    save_figure(figure, Path(__file__).parent / "images" / "channels")


if __name__ == "__main__":
    main()
