"""The network of `report.html`, drawn as its blocks: a button each, with its gate as a bar."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from xml.etree.ElementTree import Element

from gatepruner.networks.network import Block
from gatepruner.report.html.markup import element
from gatepruner.report.html.page import Page, State
from gatepruner.report.numbers import gate_text
from gatepruner.report.tables import width_text

BAR = 36  # height of the highest gate's bar
WIDTH = 10  # of the bar of a block that has all of its channels


def drawing(page: Page) -> Element:
    """The blocks in the order of depth, by stages, as in the state that is shown first."""
    numbered = enumerate(page.blocks)
    return element(
        "ol",
        *(
            element(
                "li",
                element("span", stage or "blocks", class_="stage"),
                element("ul", *(_item(page, number, block) for number, block in group)),
            )
            for stage, group in groupby(numbered, key=lambda pair: pair[1].stage)
        ),
        id="network",
        aria_label="the network, block by block",
    )


def about(block: Block, gates: Mapping[str, float]) -> str:
    """A block in words: its name, gate, shortcut and the layers of its branch."""
    parts = [f"gate {gate_text(gates[block.name])}"] if block.name in gates else []
    parts.append("identity shortcut" if block.identity else "shortcut that changes the shape")
    parts.append(f"branch of {len(block.layers)} layers" if block.branch else "no branch")
    return f"{block.name}: {', '.join(parts)}"


def fate(page: Page, block: Block) -> str:
    """What becomes of a block in the state that is shown first, as the script writes it."""
    curve = page.curves[0]
    order = list(curve.order)
    if block.name not in order:
        return "kept in every state"
    place = order.index(block.name)
    gone = place < curve.states[page.start].removed
    ranked = f"number {place + 1} to go, " if page.ranked else ""
    return f"{ranked}{'removed' if gone else 'kept'}"


def width(state: State, block: Block) -> tuple[float, str]:
    """The share of the channels of a block's narrowed layers that is left, and what it says."""
    left = state.left.get(block.name)
    if not left:
        return 1.0, ""
    some, whole = (sum(each) for each in zip(*left.values(), strict=True))
    return round(some / whole, 3), f"channels left: {width_text(left)}"


def _item(page: Page, number: int, block: Block) -> Element:
    text, words = about(block, page.gates), fate(page, block)
    gone = words.endswith("removed")
    share, channels = width(page.curves[0].states[page.start], block)
    words = "; ".join(filter(None, (text, words, channels)))
    button = element(
        "button",
        _bar(page, block, share),
        type="button",
        class_="block gone" if gone else "block",
        title=words,
        aria_label=words,
        data_block=number,
        data_about=text,
    )
    return element("li", button)


def _bar(page: Page, block: Block, share: float) -> Element:
    """A block's gate beside the highest one; a full bar where gates are not known.

    It is as wide as the share of the block's channels that is left.
    """
    highest = max(page.gates.values(), default=0.0) or 1.0
    known = bool(page.gates)
    height = BAR * page.gates.get(block.name, 0.0) / highest if known else BAR
    bar = element(
        "rect",
        x=0,
        y=round(BAR - height, 1),
        width=round(WIDTH * share, 1),
        height=round(height, 1),
    )
    return element("svg", bar, viewBox=f"0 0 {WIDTH} {BAR}", aria_hidden="true")
