"""HTML and SVG elements, in which a text from outside is text and nothing else."""

from __future__ import annotations

import json
from typing import Any
from xml.etree.ElementTree import Element, tostring

from gatepruner.errors import visible

# Inside `<script>` a browser looks for its end, and for comments, in the text as it is.
ESCAPED = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&"})


def element(tag: str, *children: Element | str, **attributes: object) -> Element:
    """An element with its children and attributes.

    Args:
        tag: its name.
        children: elements and texts; control characters of a text are spelled.
        attributes: by name, with `_` for `-` and one `_` at the end left out, as in `class_`;
            those that are `None` are left out.
    """
    values = {_spelled(name): value for name, value in attributes.items() if value is not None}
    made = Element(tag, {name: visible(str(value)) for name, value in values.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + visible(child)
        else:
            made.text = (made.text or "") + visible(child)
    return made


def _spelled(name: str) -> str:
    return name.removesuffix("_").replace("_", "-")


def markup(made: Element) -> str:
    """The HTML of an element."""
    return tostring(made, encoding="unicode", method="html")


def data_block(document: Any) -> str:
    """JSON that can stand inside `<script type="application/json">`, whatever its texts are."""
    text = json.dumps(_shown(document), allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPED)


def _shown(document: Any) -> Any:
    """A document with the control characters of its texts spelled."""
    if isinstance(document, str):
        return visible(document)
    if isinstance(document, dict):
        return {key: _shown(value) for key, value in document.items()}
    return [_shown(one) for one in document] if isinstance(document, (list, tuple)) else document
