"""The style of all figures: sizes, colours and lines, suitable for a paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure

from gatepruner.files.writing import Fill, write_files

STYLE: Any = {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # names are no formulas
    "svg.fonttype": "none",
    "svg.hashsalt": "gatepruner",
    "pdf.fonttype": 42,  # text that can be selected
}
# No dates: the same figure is the same files.
KINDS: dict[str, Any] = {
    "png": {"dpi": 200},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
OURS, GONE = "#0b5fa5", "#d1661a"
WIDE = 5.6  # inches, a column and a half

# Safe for colour-blind readers (Okabe and Ito, 2008, https://jfly.uni-koeln.de/color/); dashes and
# markers tell the lines apart in grey.
COLORS = (
    *("#0072B2", "#D55E00", "#6b6b6b", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8c6d31", "#7f3c8d"),
)
LINES: tuple[Any, ...] = (
    *("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))),
    *((0, (6, 1, 1, 1, 1, 1)), (0, (2, 2))),
)
MARKERS = ("o", "s", "^", "D", "v", "P", ">", "<", "_", "|")
MARKED = 12  # about so many markers on a line


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as `stem.png` (200 dpi), `stem.svg` and `stem.pdf`."""
    write_files(figure_fillings(figure, stem))


def figure_fillings(figure: Figure, stem: Path) -> dict[Path, Fill]:
    """What fills the files `stem.png` (200 dpi), `stem.svg` and `stem.pdf` of a figure."""

    def fill(file: BinaryIO, kind: str) -> None:
        with matplotlib.rc_context(STYLE):
            figure.savefig(file, format=kind, **KINDS[kind])

    return {stem.with_suffix(f".{kind}"): partial(fill, kind=kind) for kind in KINDS}
