"""Images in tables: parquet files as the Hub has them, and sets saved by `datasets`.

Both have a column of encoded pictures, and perhaps one of labels; what `datasets` says of them lies
beside the columns. They are read by pyarrow alone: no code comes from a set, and a path or an
address in it is a name, which is never opened. See https://huggingface.co/docs/datasets.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import DataError, listed
from gatepruner.images.decoding import Decoded, Encoded
from gatepruner.images.examples import spread_over

INSTALL = "pip install 'gatepruner[parquet]'"
# Names by which columns are found where `datasets` does not say what they are.
PICTURES, LABELS = ("image", "img", "picture"), ("label", "labels", "fine_label")
MOST_BYTES = 32 * 2**30  # of encoded pictures


@dataclass(frozen=True, slots=True)
class Row:
    """The picture in a row of a table, which has not been read yet.

    Attributes:
        group: the rows that are read together.
        column: name of the column of pictures.
        index: number of the row in its group.
    """

    group: _Group
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
    last: _Group | None = None
    values: Any = None
    for picture in pictures:
        if not isinstance(picture, Row):
            yield picture
            continue
        if last is not picture.group:
            last, values = picture.group, _encoded(picture.group, picture.column)
        content = values[picture.index].as_py()
        if not content:
            raise DataError(
                f"{picture.group.source}: {picture} has no picture, at most its name: save the "
                "set with its pictures in it"
            )
        yield Encoded(str(picture), content)


def encoded(pictures: Sequence[Picture], source: str) -> tuple[str | Encoded | Decoded, ...]:
    """Pictures, those of tables read into memory.

    Raises:
        DataError: a row has no picture, a table cannot be read, or the pictures of tables take too
            much memory.
    """
    size, every = 0, list[str | Encoded | Decoded]()
    for picture in read(pictures):
        size += len(picture.content) if isinstance(picture, Encoded) else 0
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
    groups = [group for file in files for group in _groups(file, source)]
    if not groups:
        return Table((), torch.empty(0, dtype=torch.int64), ())
    first = groups[0]
    column, label = _columns(first, source)
    other = [group.file.name for group in groups if not group.has(column, label)]
    if other:
        raise DataError(f"{source}: {listed(other)} has other columns than {first.file.name}")
    values = [value for group in groups for value in (_values(group, label) if label else ())]
    labels, classes = _labels(values, _class_names(first, label), source)
    count = sum(group.rows for group in groups)
    rows = spread_over(count, limit).tolist()
    pictures = tuple(_rows(groups, column, rows))
    if not classes:
        return Table(pictures, torch.full((len(rows),), -1), ())
    return Table(pictures, labels[torch.tensor(rows, dtype=torch.int64)], classes)


@dataclass(frozen=True)
class _Group:
    """Some rows of a file.

    Attributes:
        file: the file.
        source: what the set is called.
        start: number of its first row in the file.
        rows: how many there are.
        schema: of pyarrow.
        read: reads a column.
    """

    file: Path
    source: str
    start: int
    rows: int
    schema: Any
    read: Callable[[str], Any]

    def has(self, *columns: str | None) -> bool:
        """Whether it has these columns."""
        return all(name is None or name in self.schema.names for name in columns)


def _groups(file: Path, source: str) -> list[_Group]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file} is read by pyarrow, which is missing: {INSTALL}") from error
    try:
        if file.suffix == ".parquet":
            return _in_file(file, source, _parquet_groups(pyarrow.parquet.ParquetFile(file)))
        with pyarrow.memory_map(str(file)) as mapped:
            return _in_file(file, source, _batches(pyarrow.ipc.open_stream(mapped)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file} is no table, or is truncated: {reason}")


def _parquet_groups(table: Any) -> Iterator[tuple[int, Any, Callable[[str], Any]]]:
    """Rows, schema and reader of the groups of a parquet file."""

    def reading(index: int) -> Callable[[str], Any]:
        return lambda name: table.read_row_group(index, columns=[name]).column(name)

    for index in range(table.num_row_groups):
        yield table.metadata.row_group(index).num_rows, table.schema_arrow, reading(index)


def _batches(stream: Any) -> Iterator[tuple[int, Any, Callable[[str], Any]]]:
    """Rows, schema and reader of the batches of a file of Arrow."""
    for batch in stream:
        yield batch.num_rows, batch.schema, batch.column


def _in_file(
    file: Path, source: str, groups: Iterator[tuple[int, Any, Callable[[str], Any]]]
) -> list[_Group]:
    numbered, start = [], 0
    for rows, schema, read in groups:
        numbered.append(_Group(file, source, start, rows, schema, read))
        start += rows
    if start > file.stat().st_size:  # a row that is repeated takes no place
        raise DataError(f"{file} has {start:,} rows, more than bytes: expected a picture in each")
    return numbered


def _features(group: _Group) -> Mapping[str, Any]:
    """What `datasets` says about the columns."""
    try:
        features = json.loads((group.schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _columns(group: _Group, source: str) -> tuple[str, str | None]:
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
    return pictures[0], labels[0] if labels else None


def _of_kind(
    group: _Group, kind: str, names: Sequence[str], among: Sequence[str], *, needed: bool = True
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


def _class_names(group: _Group, label: str | None) -> list[str]:
    """The names of the classes, if `datasets` says them."""
    about = _features(group).get(label or "")
    names = about.get("names") if isinstance(about, dict) else None
    return list(map(str, names)) if isinstance(names, list) else []


def _values(group: _Group, column: str) -> list[Any]:
    import pyarrow

    try:
        values: list[Any] = group.read(column).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(group.file, error) from None
    return values


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
        return torch.tensor(values, dtype=torch.int64), tuple(names)
    classes = sorted(set(values))
    indices = {value: index for index, value in enumerate(classes)}
    return torch.tensor([indices[value] for value in values]), tuple(map(str, classes))


def _rows(groups: Sequence[_Group], column: str, rows: Sequence[int]) -> Iterator[Row]:
    """The rows of these numbers in a set."""
    starts = [0, *itertools.accumulate(group.rows for group in groups)]
    for row in rows:
        at = bisect.bisect_right(starts, row) - 1
        yield Row(groups[at], column, row - starts[at])


def _encoded(group: _Group, column: str) -> Any:
    """The column of bytes of a group."""
    import pyarrow
    import pyarrow.compute

    try:
        values = group.read(column)
        if pyarrow.types.is_struct(values.type):
            values = pyarrow.compute.struct_field(values, "bytes")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(group.file, error) from None
    return values
