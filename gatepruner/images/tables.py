"""Images in tables: parquet files as the Hub has them, and sets saved by `datasets`.

Both have a column of encoded pictures, and perhaps one of labels; what `datasets` says of them lies
beside the columns. They are read by pyarrow alone: no code comes from a set, and a path or an
address in it is a name, which is never opened. See https://huggingface.co/docs/datasets.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import DataError, listed
from gatepruner.images.arrow import Group, groups_of, picked, values_of
from gatepruner.images.decoding import Decoded, Encoded
from gatepruner.images.examples import spread_over

# Names by which columns are found where `datasets` does not say what they are.
PICTURES, LABELS = ("image", "img", "picture"), ("label", "labels", "fine_label")
MOST_BYTES = 32 * 2**30  # of encoded pictures


@dataclass(frozen=True, slots=True)
class Row:
    """The picture in a row of a table, which has not been read yet.

    Attributes:
        group: the rows that are read together.
        source: what the set is called.
        column: name of the column of pictures.
        index: number of the row in its group.
    """

    group: Group
    source: str
    column: str
    index: int

    def __str__(self) -> str:
        return f"{self.group.file.name}, row {self.group.start + self.index}"


Picture = str | Encoded | Decoded | Row  # a path, or a picture in memory, a cache or a table


def read(pictures: Iterable[Picture]) -> Iterator[str | Encoded | Decoded]:
    """Pictures, those of tables read; rows that follow each other in a group are read at once.

    Raises:
        DataError: a row has no picture, or a table cannot be read.
    """
    for _, run in itertools.groupby(pictures, _group_of):
        rows: list[Row] = []
        for picture in run:
            if isinstance(picture, Row):
                rows.append(picture)
            else:
                yield picture
        if rows:
            yield from _read(rows)


def _group_of(picture: Picture) -> int | None:
    return id(picture.group) if isinstance(picture, Row) else None


def _read(rows: Sequence[Row]) -> Iterator[Encoded]:
    """The pictures in rows of one group; equal ones are one object."""
    wanted = sorted({row.index for row in rows})
    contents = picked(rows[0].group.column(rows[0].column, "bytes"), wanted)
    found = dict(zip(wanted, contents, strict=True))
    for row in rows:
        content = found[row.index]
        if not content:
            raise DataError(
                f"{row.source}: {row} has no picture, at most its name: save the set with its "
                "pictures in it"
            )
        yield Encoded(str(row), content)


def encoded(pictures: Sequence[Picture], source: str) -> tuple[str | Encoded | Decoded, ...]:
    """Pictures, those of tables read into memory; equal ones are one object.

    Raises:
        DataError: a row has no picture, a table cannot be read, or the pictures of tables take too
            much memory.
    """
    size, known, every = 0, dict[bytes, bytes](), list[str | Encoded | Decoded]()
    for picture in read(pictures):
        if isinstance(picture, Encoded):
            size += len(picture.content) if picture.content not in known else 0
            picture = Encoded(picture.name, known.setdefault(picture.content, picture.content))
        if size > MOST_BYTES:
            raise DataError(
                f"{source} has more than {MOST_BYTES >> 30} GiB of pictures, which are kept in "
                "memory: read fewer, or write them into an imagefolder",
                limit=len(every),
            )
        every.append(picture)
    return tuple(every)


@dataclass(frozen=True)
class Table:
    """The rows of a set, or as many as were asked for.

    Attributes:
        pictures: one a row; they are read when they are used.
        labels: `(N,)` int64; -1 without labels.
        classes: name of each class; none without labels.
    """

    pictures: tuple[Row, ...]
    labels: Tensor
    classes: tuple[str, ...]


def read_table(files: Sequence[Path], source: str, limit: int | None) -> Table:
    """Read labels, and find pictures.

    Args:
        files: of one set, in their order.
        source: what to call it.
        limit: most rows to read, evenly spaced over the set.

    Raises:
        DataError: pyarrow is missing, or a file cannot be read or has no column of pictures.
    """
    groups = [group for file in files for group in groups_of(file)]
    if not groups:
        return Table((), torch.empty(0, dtype=torch.int64), ())
    first = groups[0]
    column, label = _columns(first, source)
    other = [group.file.name for group in groups if not group.has(column, label)]
    if other:
        raise DataError(f"{source}: {listed(other)} has other columns than {first.file.name}")
    values = [value for group in groups if label for value in values_of(group.column(label))]
    labels, classes = _labels(values, _class_names(first, label), source)
    count = sum(group.rows for group in groups)
    rows = spread_over(count, limit).tolist()
    pictures = tuple(_rows(groups, source, column, rows))
    if not classes:
        return Table(pictures, torch.full((len(rows),), -1), ())
    return Table(pictures, labels[torch.tensor(rows, dtype=torch.int64)], classes)


def _features(group: Group) -> Mapping[str, Any]:
    """What `datasets` says about the columns."""
    try:
        features = json.loads((group.schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _columns(group: Group, source: str) -> tuple[str, str | None]:
    """The column of pictures, and that of labels if there is one."""
    encoded = [field.name for field in group.schema if _holds_bytes(field.type)]
    pictures = _of_kind(group, "Image", PICTURES, encoded)
    if len(pictures) != 1:
        raise DataError(
            f"{source} has {len(pictures)} columns of encoded pictures among "
            f"{listed(group.schema.names)}: expected one, a struct with bytes or binary"
        )
    others = [name for name in group.schema.names if name not in encoded]
    labels = _of_kind(group, "ClassLabel", LABELS, others, needed=False)
    if len(labels) > 1:
        raise DataError(f"{source} has several columns of labels: {listed(labels)}; keep one")
    for name in labels:
        if not _are_labels(kind := group.schema.field(name).type):
            raise DataError(
                f"{source} has labels of the type {kind}: expected whole numbers, or names"
            )
    return pictures[0], labels[0] if labels else None


def _of_kind(
    group: Group, kind: str, names: Sequence[str], among: Sequence[str], *, needed: bool = True
) -> list[str]:
    """The columns of a kind: those of a usual name first, then by what `datasets` says."""
    features = _features(group)
    named = [name for name in names if name in among]
    said = [
        name
        for name in among
        if isinstance(features.get(name), dict) and features[name].get("_type") == kind
    ]
    chosen = [name for name in named if name in said] or said or named
    if chosen:
        return chosen[:1] if chosen[0] in names else chosen
    return list(among) if needed else []


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _are_labels(kind: Any) -> bool:
    """Whether values of a type can be labels: others could repeat what takes no place."""
    from pyarrow import types

    plain = (types.is_integer, types.is_string, types.is_large_string, types.is_null)
    values = kind.value_type if types.is_dictionary(kind) else kind
    return any(fits(values) for fits in plain)


def _class_names(group: Group, label: str | None) -> list[str]:
    """The names of the classes, if `datasets` says them."""
    about = _features(group).get(label or "")
    names = about.get("names") if isinstance(about, dict) else None
    return list(map(str, names)) if isinstance(names, list) else []


def _labels(
    values: Sequence[Any], names: Sequence[str], source: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as indices of classes; none if there is no label at all."""
    unlabelled = [value is None or value == -1 for value in values]
    if all(unlabelled):
        return torch.empty(0, dtype=torch.int64), ()
    if any(unlabelled):
        raise DataError(
            f"{source}: {sum(unlabelled)} of {len(values)} rows have no label: leave them out, or "
            "leave out the column"
        )
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        raise DataError(
            f"{source} has labels of {listed(sorted(kind.__name__ for kind in kinds))}: expected "
            "whole numbers, or names"
        )
    if names and kinds == {int}:
        if min(values) < 0 or max(values) >= len(names):
            raise DataError(
                f"{source}: labels reach from {min(values)} to {max(values)}, expected 0 to "
                f"{len(names) - 1}"
            )
        return torch.tensor(values, dtype=torch.int64), tuple(names)
    classes = sorted(set(values))
    indices = {value: index for index, value in enumerate(classes)}
    return torch.tensor([indices[value] for value in values]), tuple(map(str, classes))


def _rows(groups: Sequence[Group], source: str, column: str, rows: Sequence[int]) -> Iterator[Row]:
    """The rows of these numbers in a set."""
    starts = [0, *itertools.accumulate(group.rows for group in groups)]
    for row in rows:
        at = bisect.bisect_right(starts, row) - 1
        yield Row(groups[at], source, column, row - starts[at])
