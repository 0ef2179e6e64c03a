"""Tables in markdown, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its first column to the left and the others to the right."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def seconds(found: Mapping[str, Any], unit: float = 1, digits: int = 2) -> str:
    """`median (low to high)` in seconds over the unit."""
    median, low, high = (f"{found[key] / unit:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def means(values: Sequence[float], form: str = ".1f") -> str:
    """`91.2` or `91.2 (90.8 to 91.5)`: mean and range."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"
