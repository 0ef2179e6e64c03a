"""`report.html` as text: one file that asks for nothing outside itself.

Its Content-Security-Policy lets its own style and script through by their hashes and nothing else.
Without its script it shows the figure, the network of one state, and the numbers of all.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template
from typing import Any
from xml.etree.ElementTree import Element

from gatepruner.report.html.figure import figure, places, swatch
from gatepruner.report.html.markup import data_block, element, markup
from gatepruner.report.html.network import WIDTH, drawing, width
from gatepruner.report.html.page import Curve, Page, State, readings

KEY = (
    "Bars are gates; removed blocks are dashed and grey; point at a block, or use Tab and the "
    "arrow keys, to read about it."
)


def document(page: Page) -> str:
    """The text of `report.html`."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = page.curves[0].states[page.start]
    return Template(_resource("report.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        data=data_block(_script_data(page)),
        title=_text(page.title),
        lead="".join(markup(element("p", sentence)) for sentence in page.lead),
        axis=_text(page.axis),
        last=len(page.curves[0].states) - 1,
        start=page.start,
        shown=_text(shown.title),
        readings=markup(_readings(page, shown)),
        figure=markup(figure(page)),
        choice="Order of removal" if len(page.curves) > 1 else "",
        curves=markup(_legend(page)),
        key=_key(page),
        note=_text(_note(page)),
        network=markup(drawing(page)),
        how=_text(page.how),
        command=_text(shown.command),
        without="hidden" if not shown.command else "",
        table=markup(_table(page)),
        conditions=markup(_conditions(page)),
    )


def _resource(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _digest(text: str) -> str:
    """The source of a Content-Security-Policy that lets this text through."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(text: str) -> str:
    """A text as HTML."""
    return markup(element("i", text))[len("<i>") : -len("</i>")]


def _key(page: Page) -> str:
    """How to read the drawing of the network."""
    bars, _, rest = KEY.partition("; ")
    narrow = "narrower where channels are gone"
    if page.narrows():
        bars = f"{bars}, {narrow}" if page.gates else f"Bars are {narrow}"
        return f"{bars}; {rest}"
    return KEY if page.gates else rest


def _script_data(page: Page) -> dict[str, Any]:
    """What the script needs: texts that are written already, and places in the figure."""
    index = {block.name: number for number, block in enumerate(page.blocks)}
    curves = []
    for curve, points in zip(page.curves, places(page), strict=True):
        states = [
            {
                "title": state.title,
                "removed": state.removed,
                "values": [text for _, text in readings(page, curve, state)],
                "command": state.command,
                "point": point,
                "left": {
                    index[name]: width(state, page.blocks[index[name]])
                    for name in state.left
                    if name in index
                },
            }
            for state, point in zip(curve.states, points, strict=True)
        ]
        order = [index.get(name, -1) for name in curve.order]  # slices are no blocks
        curves.append({"order": order, "states": states})
    return {"ranked": page.ranked, "width": WIDTH, "curves": curves}


def _readings(page: Page, shown: State) -> Element:
    pairs = readings(page, page.curves[0], shown)
    rows = (element("div", element("dt", name), element("dd", text)) for name, text in pairs)
    return element("dl", *rows, id="readings")


def _legend(page: Page) -> Element:
    """Every curve with its line; the script shows what chooses and hides them."""
    several = len(page.curves) > 1
    items = (_legend_item(index, curve, several) for index, curve in enumerate(page.curves))
    return element("ul", *items, class_="legend")


def _legend_item(index: int, curve: Curve, several: bool) -> Element:
    name = f"curve-{index}"
    line = (swatch(index), element("span", curve.label))
    if not several:
        return element("li", element("span", *line, class_="label"))
    chosen = {"checked": "checked"} if index == 0 else {}
    return element(
        "li",
        element("input", type="radio", name="curve", id=name, value=index, hidden="", **chosen),
        element("label", *line, for_=name),
        element(
            "label",
            element("input", type="checkbox", checked="checked", value=index),
            " line",
            element("span", f" of {curve.name}", class_="unseen"),
            class_="line",
            hidden="",
        ),
    )


def _table(page: Page) -> Element:
    """The numbers of every state; MACs, parameters and latencies are those of the first curve."""
    first = page.curves[0]
    several = len(page.curves) > 1
    titles = [page.axis, *(curve.name if several else page.measure for curve in page.curves)]
    titles += [name for name, _ in readings(page, first, first.states[0])[2:]]
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    return element(
        "table",
        element("thead", head),
        element("tbody", *(_row(page, index) for index in range(len(first.states)))),
    )


def _note(page: Page) -> str:
    """What the table's parentheses are."""
    first = page.curves[0]
    others = [one for one in page.curves if one.spread != first.spread]
    spreads = [first.spread, *(f"for {one.name} {one.spread.partition(';')[0]}" for one in others)]
    parts = [f"In parentheses: {', '.join(spreads)}", "the share of MACs and parameters kept"]
    parts += ["quartiles of latency where it was measured"] if page.engines else []
    rest = f" All but accuracy is of the order by {first.name}." if len(page.curves) > 1 else ""
    return f"{'; '.join(parts)}.{rest}"


def _row(page: Page, index: int) -> Element:
    pairs = [readings(page, curve, curve.states[index]) for curve in page.curves]
    cells = [f"{curve[0][1]} ({curve[1][1].partition(' (')[0]})" for curve in pairs]
    cells += [text for _, text in pairs[0][2:]]
    state = page.curves[0].states[index]
    title = element("th", str(state.removed) if page.ranked else state.title, scope="row")
    current = "true" if index == page.start else None
    written = (element("td", _unbroken(cell)) for cell in cells)
    return element("tr", title, *written, aria_current=current)


def _unbroken(text: str) -> str:
    """A number with its interval, which may begin a line of its own but not be broken."""
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")


def _conditions(page: Page) -> Element:
    return element(
        "dl",
        *(
            element("div", element("dt", str(name)), element("dd", str(value)))
            for name, value in page.conditions.items()
        ),
        class_="conditions",
    )
