"""Documents from outside: text and JSON within limits, and what each value has to be.

A schema is a type: a dataclass, a `TypedDict` or an `msgspec.Struct`, next to what it describes.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gatepruner.errors import CheckpointError, GatePrunerError

LARGEST = 2**22  # characters of a document, or bytes of its file
DEEPEST = 64  # levels of lists and objects in each other
Schema = TypeVar("Schema")


def text_of(
    path: Path, *, most: int | None = None, kind: type[GatePrunerError] = CheckpointError
) -> str:
    """The text of a document in a file; all documents are read here.

    Args:
        path: the file.
        most: bytes that it may have; by default `LARGEST`.
        kind: of the error.

    Raises:
        GatePrunerError: it cannot be read, is no regular file, too large or no UTF-8.
    """
    most = LARGEST if most is None else most
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise kind(f"{path} is no regular file: expected a document")
            size = about.st_size
            content = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise kind(f"cannot read {path}: {error.strerror}") from None
    if max(size, len(content)) > most:
        raise kind(f"{path} is too large: {size:,} bytes, expected at most {most:,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is no text in UTF-8: byte {error.start:,} is damaged") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe does not wait for who writes it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
