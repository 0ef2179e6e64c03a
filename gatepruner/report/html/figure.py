"""The figure of `report.html`: accuracy of every state, as SVG that the script moves a mark on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from gatepruner.report.html.markup import element
from gatepruner.report.html.page import Curve, Page
from gatepruner.report.style import COLORS

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
MARKS = 12  # about so many markers on a line
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "5 2 1 2", "1 2", "12 3", "9 2 2 2 2 2", "3 3")
# Shapes that can be told apart in grey, around the origin.
SHAPES = (
    "M-3.2,0a3.2,3.2 0 1,0 6.4,0a3.2,3.2 0 1,0 -6.4,0z",
    "M-3,-3h6v6h-6z",
    "M0,-4l3.8,6.6h-7.6z",
    "M0,-4.2l4.2,4.2l-4.2,4.2l-4.2,-4.2z",
    "M0,4l3.8,-6.6h-7.6z",
    "M-1.2,-4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
    "M-4,0l6.6,-3.8v7.6z",
    "M4,0l-6.6,-3.8v7.6z",
    "M-4,-1h8v2h-8z",
    "M-1,-4h2v8h-2z",
)
Place = tuple[float, float]


def places(page: Page) -> list[list[Place]]:
    """`(x, y)` in the figure of every state of every curve."""
    bottom = _bottom(page)
    return [
        [(_x(page, index), _y(state.share, bottom)) for index, state in enumerate(curve.states)]
        for curve in page.curves
    ]


def figure(page: Page) -> Element:
    """The figure, with a mark at the state that is shown first."""
    bottom, points = _bottom(page), places(page)
    x, y = points[0][page.start]
    lines = [_line(curve, points[index], index, bottom) for index, curve in enumerate(page.curves)]
    names = ", ".join(curve.name for curve in page.curves)
    what = f"{page.measure} against {page.axis}: {names}. All numbers are in the table below."
    return element(
        "svg",
        *_axes(page, bottom),
        element("g", *reversed(lines), class_="lines", id="lines"),
        element(
            "g",
            element("line", y1=TOP - y, y2=HEIGHT - BOTTOM - y),
            element("circle", r=5),
            id="mark",
            data_top=TOP,
            data_bottom=HEIGHT - BOTTOM,
            transform=f"translate({x} {y})",
        ),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="figure",
        aria_label=what,
    )


def swatch(index: int) -> Element:
    """A piece of a curve's line, for the legend."""
    line = element("path", d="M0,6h34", stroke_dasharray=DASHES[index] or None)
    shown = element("g", line, _marker(index, (17, 6)), color=_color(index))
    return element("svg", shown, viewBox="0 0 34 12", class_="swatch lines", aria_hidden="true")


def _bottom(page: Page) -> float:
    """The lower end of the y axis: a multiple of a tenth below all that is drawn."""
    lowest = min(state.low for curve in page.curves for state in curve.states)
    return max(math.floor(10 * lowest - 1e-9) / 10, 0.0) if lowest < 1 else 0.9


def _x(page: Page, index: int) -> float:
    last = max(len(page.curves[0].states) - 1, 1)
    return round(LEFT + (WIDTH - LEFT - RIGHT) * index / last, 1)


def _y(share: float, bottom: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share) / (1 - bottom), 1)


def _color(index: int) -> str:
    """Black is that of the text, which is white in the dark."""
    return "currentColor" if COLORS[index] == "#000000" else COLORS[index]


def _line(curve: Curve, points: Sequence[Place], index: int, bottom: float) -> Element:
    """A curve with its band and markers."""
    xs = [x for x, _ in points]
    upper = [(x, _y(state.high, bottom)) for x, state in zip(xs, curve.states, strict=True)]
    lower = [(x, _y(state.low, bottom)) for x, state in zip(xs, curve.states, strict=True)]
    step = max(1, round(len(points) / MARKS))
    return element(
        "g",
        element("path", d=f"{_path([*upper, *reversed(lower)])}z", class_="band"),
        element("path", d=_path(points), stroke_dasharray=DASHES[index] or None),
        *(_marker(index, point) for point in points[index % step :: step]),
        color=_color(index),
        data_curve=index,
    )


def _path(points: Sequence[Place]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in points)


def _marker(index: int, point: Place) -> Element:
    x, y = point
    return element("path", d=SHAPES[index], class_="marker", transform=f"translate({x} {y})")


def _axes(page: Page, bottom: float) -> list[Element]:
    """Grid, ticks and labels."""
    low, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    step = next(step for step in (2, 5, 10, 20) if 100 * (1 - bottom) / step <= 6)
    parts = []
    for share in range(math.ceil(100 * bottom / step) * step, 101, step):
        y = _y(share / 100, bottom)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", str(share), x=LEFT - 6, y=y + 4, class_="end"))
    for index, text in page.ticks.items():
        x = _x(page, index)
        parts.append(element("line", x1=x, x2=x, y1=low, y2=low + 4, class_="axis"))
        end = "end" if x > right - 12 and len(text) > 3 else "middle"
        start = "start" if x < LEFT + 12 and len(text) > 3 else end
        parts.append(element("text", text, x=x, y=low + 17, class_=start))
    middle = (TOP + low) / 2
    return [
        *parts,
        element("line", x1=LEFT, x2=right, y1=low, y2=low, class_="axis"),
        element("text", page.axis, x=(LEFT + right) / 2, y=HEIGHT - 8, class_="middle"),
        element(
            "text",
            f"{page.measure} (%)",
            transform=f"translate(13 {middle}) rotate(-90)",
            class_="middle",
        ),
    ]
