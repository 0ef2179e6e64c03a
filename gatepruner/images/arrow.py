"""Rows of tables as pyarrow reads them: the groups of a parquet file, the batches of a stream.

A table says once what many of its rows have. So do we: equal values of a group are one object, and
what would unpack to much more than its file is refused.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatepruner.errors import DataError

INSTALL = "pip install 'gatepruner[parquet]'"
MOST_UNPACKED, UNPACKED = 16, 2**26  # what a table may unpack to: times its file, or bytes
Rows = tuple[int, Any, Callable[[str], Any]]  # how many, their schema, and what reads a column


@dataclass(frozen=True)
class Group:
    """Some rows of a file.

    Attributes:
        file: the file.
        start: number of its first row in the file.
        rows: how many there are.
        schema: of pyarrow.
        read: reads a column, as an array of pyarrow or a chunked one.
    """

    file: Path
    start: int
    rows: int
    schema: Any
    read: Callable[[str], Any]

    def has(self, *columns: str | None) -> bool:
        """Whether it has these columns."""
        return all(name is None or name in self.schema.names for name in columns)

    def column(self, name: str, part: str = "") -> Any:
        """A column, or a part of one that has several in each row.

        Raises:
            DataError: it is damaged.
        """
        import pyarrow
        import pyarrow.compute

        try:
            values = self.read(name)
            values.validate(full=True)  # or what is damaged would end the process
            if part and pyarrow.types.is_struct(values.type):
                values = pyarrow.compute.struct_field(values, part)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _unreadable(self.file, error) from None
        return values


def groups_of(file: Path) -> list[Group]:
    """The groups of rows in a file, which is a parquet file or a stream of Arrow.

    Raises:
        DataError: pyarrow is missing, or the file is no table, damaged, or unpacks to too much.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file} is read by pyarrow, which is missing: {INSTALL}") from error
    if not file.is_file():
        raise DataError(f"{file} is no regular file: expected a table")
    try:
        if file.suffix == ".parquet":
            return _in_file(file, _parquet_groups(file))
        with pyarrow.memory_map(str(file)) as mapped:
            _refuse_packed(file, mapped)
            mapped.seek(0)
            return _in_file(file, _batches(pyarrow.ipc.open_stream(mapped)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def most_unpacked(file: Path) -> int:
    """How many bytes a file may unpack to."""
    return max(MOST_UNPACKED * file.stat().st_size, UNPACKED)


def picked(column: Any, rows: Sequence[int]) -> Iterator[Any]:
    """The values of a column at some rows, which are in order; equal ones are one object."""
    start, at = 0, 0
    for chunk in _chunks(column):
        end = bisect.bisect_left(rows, start + len(chunk), at)
        yield from _picked(chunk, [row - start for row in rows[at:end]])
        start, at = start + len(chunk), end


def _picked(chunk: Any, rows: Sequence[int]) -> Iterator[Any]:
    import pyarrow

    if not pyarrow.types.is_dictionary(chunk.type):
        yield from (chunk[row].as_py() for row in rows)
        return
    made: dict[int | None, Any] = {None: None}
    for row in rows:
        place = chunk.indices[row].as_py()
        if place not in made:
            made[place] = chunk.dictionary[place].as_py()
        yield made[place]


def values_of(column: Any) -> list[Any]:
    """All values of a column; equal ones are one object."""
    import pyarrow

    values: list[Any] = []
    for chunk in _chunks(column):
        if pyarrow.types.is_dictionary(chunk.type):
            known = chunk.dictionary.to_pylist()
            values += [None if at is None else known[at] for at in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def _chunks(column: Any) -> list[Any]:
    import pyarrow

    return column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file} is no table, or is truncated: {reason}")


def _parquet_groups(file: Path) -> Iterator[Rows]:
    """The groups of a parquet file; values that it repeats are read as a dictionary."""
    from pyarrow.parquet import ParquetFile

    plain = ParquetFile(file)
    columns = [plain.schema.column(index) for index in range(len(plain.schema))]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    table = ParquetFile(file, read_dictionary=texts)

    def reading(index: int) -> Callable[[str], Any]:
        return lambda name: table.read_row_group(index, columns=[name]).column(name)

    for index in range(plain.num_row_groups):
        group = plain.metadata.row_group(index)
        sizes = [group.column(at).total_uncompressed_size for at in range(group.num_columns)]
        if not 0 <= sum(sizes) <= most_unpacked(file):
            raise DataError(
                f"{file} unpacks to {sum(sizes):,} bytes: expected at most {MOST_UNPACKED} times "
                f"its size, or {UNPACKED:,}"
            )
        yield group.num_rows, plain.schema_arrow, reading(index)


def _refuse_packed(file: Path, mapped: Any) -> None:
    """Refuse a stream of Arrow with a compressed batch, before it is unpacked to any size."""
    import pyarrow

    for message in pyarrow.ipc.MessageReader.open_stream(mapped):
        metadata = memoryview(message.metadata)
        try:
            packed = message.type != "schema" and _is_packed(metadata, message.type)
        except struct.error:
            raise DataError(f"{file} is no table, or is truncated") from None
        if packed:
            raise DataError(f"{file} is compressed: expected a set as save_to_disk writes it")


def _is_packed(data: memoryview, kind: str) -> bool:
    """Whether the metadata of a message say that its buffers are compressed.

    They are FlatBuffers; see `Message.fbs` of Apache Arrow, https://arrow.apache.org/docs/format.
    """
    batch = _table(data, _field(data, _table(data, 0), 2))
    if kind != "record batch":  # a dictionary, which holds a batch
        batch = _table(data, _field(data, batch, 1))
    return _field(data, batch, 3) > 0


def _table(data: memoryview, at: int) -> int:
    """Where the table begins to which an offset leads."""
    return int(at + struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is; 0 if the table lacks it."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, fields)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return int(table + offset) if offset else 0


def _batches(stream: Any) -> Iterator[Rows]:
    """The batches of a stream of Arrow."""
    for batch in stream:
        yield batch.num_rows, batch.schema, batch.column


def _in_file(file: Path, parts: Iterator[Rows]) -> list[Group]:
    numbered, start = [], 0
    for rows, schema, read in parts:
        numbered.append(Group(file, start, rows, schema, read))
        start += rows
    if start > file.stat().st_size:  # a row that is repeated takes no place
        raise DataError(f"{file} has {start:,} rows, more than bytes: expected a picture in each")
    return numbered
