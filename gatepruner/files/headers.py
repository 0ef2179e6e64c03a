"""The headers of gatepruner's files: a schema for each format, and how old ones become new ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gatepruner.documents import checked
from gatepruner.errors import CheckpointError
from gatepruner.files.paths import PackedRemovalDocument
from gatepruner.networks.base import BaseDocument
from gatepruner.networks.checkpoint import Notes
from gatepruner.networks.edits import EditsDocument, NarrowedEditsDocument
from gatepruner.networks.packing import Entry
from gatepruner.networks.path import RemovalDocument


class NetworkDocument(msgspec.Struct):
    """A network as JSON."""

    base: BaseDocument
    edits: EditsDocument


class NarrowedDocument(NetworkDocument):
    """A network with narrowed layers as JSON."""

    edits: NarrowedEditsDocument


class Header1(msgspec.Struct):
    """The header of a file of format 1."""

    format: int
    network: NetworkDocument
    notes: Notes


class Header2(Header1):
    """The header of a file of format 2."""

    path: list[str]


class Header3(Header1):
    """The header of a file of format 3."""

    path: list[RemovalDocument]


class Header4(Header1):
    """The header of a file of format 4."""

    network: NarrowedDocument
    path: list[PackedRemovalDocument]
    states: list[Entry]


HEADERS: dict[int, type[Header1]] = {1: Header1, 2: Header2, 3: Header3, 4: Header4}
FORMAT = 4  # 2 added the path, 3 its records in the header, 4 packs its states; narrowed layers
READS = tuple(HEADERS)


def upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """A header as in format 3 or 4, from one in any format."""
    notes, path = dict(header["notes"].items()), []
    if header["format"] == 2:  # the notes held the path's records, even without a path
        records = {
            record["gone"]: {"block": record["gone"], **record} for record in notes.pop("path", ())
        }
        path = [records[str(name)] for name in header["path"]]
        if records and not path:
            gates = {name: record["gate"] for name, record in records.items()}
            notes["gates"] = {**notes.get("gates", {}), **gates}
    elif header["format"] > 2:
        path = list(header["path"])
    return {**header, "notes": notes, "path": path}


def check_header(path: Path, header: Mapping[str, Any], arch: str | None) -> None:
    """Raise a `CheckpointError` unless a header is of a known format and of its schema."""
    if type(header.get("format")) is not int or header["format"] not in READS:
        raise CheckpointError(
            f"{path} has format {header.get('format')!r}: this version of gatepruner reads "
            f"formats {READS[0]} to {READS[-1]}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(
            f"{path} contains its own architecture: leave out the architecture {arch}"
        )
    checked(header, HEADERS[header["format"]], f"the header of {path}")
