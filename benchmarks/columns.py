"""Tables as data: columns with a title, a value and a way of writing it, rendered as markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Record = Mapping[str, Any]  # a measurement, or the document of a benchmark
Write = Callable[[Sequence[Any]], str]


def means(form: str = ".1f", scale: float = 1.0) -> Write:
    """Writes `91.2`, or mean and range `91.2 (90.8 to 91.5)`; NaN stands for a diverged run."""

    def write(values: Sequence[float]) -> str:
        scaled = [scale * value for value in values if not math.isnan(value)]
        parts = [f"{fmean(scaled):{form}}"] if scaled else []
        if len(scaled) > 1:
            parts[0] += f" ({min(scaled):{form}} to {max(scaled):{form}})"
        if len(scaled) < len(values):
            parts.append(f"{len(values) - len(scaled)} diverged")
        return ", ".join(parts)

    return write


def mean(form: str) -> Write:
    """Writes the mean alone."""
    return lambda values: f"{fmean(values):{form}}" if values else ""


def quartiles(digits: int = 2, scale: float = 1.0) -> Write:
    """Writes `median (low to high)` of a time, in seconds times the scale."""

    def write(values: Sequence[Record]) -> str:
        low, median, high = (
            f"{scale * values[0][key]:.{digits}f}" for key in ("low", "median", "high")
        )
        return f"{median} ({low} to {high})"

    return write


PERCENT, PERCENTS = means(".1f", 100), means(".2f", 100)


def text(values: Sequence[Any]) -> str:
    """Writes the first value as it is."""
    return str(values[0]) if values else ""


@dataclass(frozen=True)
class Column:
    """A column, or one for every value of a key.

    Attributes:
        title: may name fields of the first record, as in `n = {images}`; `{}` is the value of
            `over`.
        value: a key of a record, a text with keys as in `{network}, {batch}`, or a function of
            a record; None is left out.
        write: the values of one cell as text.
        over: a key; there is a column for every value of it.
        at: only for these values.
    """

    title: str
    value: str | Callable[[Record], Any]
    write: Write = text
    over: str = ""
    at: Sequence[Any] = ()

    def spread(self, records: Sequence[Record]) -> list[tuple[str, Callable[[Record], Any]]]:
        """The title and the value of each column that it stands for."""
        if not self.over:
            return [(self.title.format(**records[0]), self.of)]
        found = dict.fromkeys(record[self.over] for record in records if self.over in record)
        return [(self.title.format(key), self._only(key)) for key in self.at or found]

    def of(self, record: Record) -> Any:
        if callable(self.value):
            return self.value(record)
        return self.value.format(**record) if "{" in self.value else record.get(self.value)

    def _only(self, key: Any) -> Callable[[Record], Any]:
        return lambda record: self.of(record) if record.get(self.over) == key else None


@dataclass(frozen=True)
class Table:
    """Columns over the records of a result.

    Attributes:
        columns: from left to right.
        records: what the rows are made of; the rows of the result by default.
        keys: how many of the first columns tell its rows apart; records that agree in them are
            one row.
        split: a key; there is a table for every value of it.
        timed: whether its numbers are medians and quartiles of times.
    """

    columns: Sequence[Column]
    records: Callable[[Record], Iterable[Record]] = lambda result: result["rows"]
    keys: int = 1
    split: str = ""
    timed: bool = False

    def render(self, result: Record) -> str:
        """The table in markdown, its first column to the left and the others to the right."""
        parts = grouped(self.records(result), lambda record: record.get(self.split))
        return "\n".join(self._part(part) for part in parts.values())

    def _part(self, records: list[Record]) -> str:
        rows = grouped(
            records, lambda record: tuple(it.of(record) for it in self.columns[: self.keys])
        )
        columns = [
            (column.write, *one) for column in self.columns for one in column.spread(records)
        ]
        lines = [[title for _, title, _ in columns], ["---", *("---:" for _ in columns[1:])]]
        for row in rows.values():
            cells = ((write, map(value, row)) for write, _, value in columns)
            lines.append([write([it for it in of if it is not None]) for write, of in cells])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(*columns: Column, **more: Any) -> Table:
    """The columns as a table; `more` are its other attributes."""
    return Table(columns, **more)


def grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """The records by what the key finds in them, in the order of first occurrence."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups
