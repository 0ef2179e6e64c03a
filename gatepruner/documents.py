"""Documents from outside: JSON within limits, and what each of its values has to be.

A schema is a type: a dataclass, a `TypedDict` or an `msgspec.Struct`, next to what it describes.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from gatepruner.errors import CheckpointError, GatePrunerError

LARGEST = 2**22  # characters of a document
DEEPEST = 64  # levels of lists and objects in each other
Schema = TypeVar("Schema")


def parsed(text: str, what: str, kind: type[GatePrunerError] = CheckpointError) -> Any:
    """The value of a JSON document.

    Args:
        text: the document.
        what: it is, for error messages.
        kind: of the error.

    Raises:
        GatePrunerError: it is not JSON, too large or too deep.
    """
    if len(text) > LARGEST:
        raise kind(f"{what} is damaged: {len(text):,} characters, expected at most {LARGEST:,}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise kind(f"{what} is damaged: not valid JSON ({reason})") from None
    level = [document]
    for _ in range(DEEPEST):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return document
    raise kind(f"{what} is damaged: more than {DEEPEST} levels of lists and objects")


def checked(
    document: Any, schema: type[Schema], what: str, kind: type[GatePrunerError] = CheckpointError
) -> Schema:
    """A document as its schema describes it.

    Args:
        document: plain values.
        schema: the type that they have to have.
        what: the document is, for error messages.
        kind: of the error.

    Raises:
        GatePrunerError: a value is missing, unknown or of another type; names its place.
    """
    try:
        return msgspec.convert(document, schema, strict=True)
    except UnicodeEncodeError:
        raise kind(f"{what} is damaged: it has half a letter (a lone surrogate)") from None
    except msgspec.ValidationError as error:
        problem, _, place = str(error).replace("`", "'").partition(" - at ")
        where = f"{place.strip(chr(39)).removeprefix('$').lstrip('.')}: " if place else ""
        raise kind(f"{what} is damaged: {where}{problem[0].lower()}{problem[1:]}") from None


def _parts(value: Any) -> list[Any]:
    """The values in a list or an object."""
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []
