"""What was measured: rows, columns, and the value of every round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        title: What it is.
        unit: What its values count.
        less_is_better: Whether it is a time or a size, not a rate.
        has_ratio: Whether one value divided by another says anything.
    """

    title: str
    unit: str
    less_is_better: bool = False
    has_ratio: bool = True


@dataclass(frozen=True)
class Column:
    """A column of a section's table.

    Attributes:
        key: Its name in the JSON.
        heading: Above it.
        sign: Behind its values.
    """

    key: str
    heading: str
    sign: str = ""


class Values:
    """The values of one section, by row and by the key of the column."""

    def __init__(self) -> None:
        self._found: dict[Row, dict[str, list[float]]] = {}

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows in the order in which they were first measured."""
        return iter(self._found)

    def add(self, row: Row, column: str, *values: float) -> None:
        """Notes what was measured."""
        self._found.setdefault(row, {}).setdefault(column, []).extend(values)

    def of(self, row: Row, column: str) -> Sequence[float]:
        """Returns every value of a cell; none if it was not measured."""
        return self._found[row].get(column, ())

    def compare(self, name: str, column: str, other: str, *, times_as_long: bool = False) -> None:
        """Adds a column: round by round, how many times better one column is than another.

        Args:
            name: Of the new column.
            column: The one that is judged.
            other: What it is judged by.
            times_as_long: Whether to say how many times worse it is instead.
        """
        for row, found in self._found.items():
            if not row.has_ratio or column not in found or other not in found:
                continue
            pairs = zip(found[column], found[other], strict=True)
            inverse = row.less_is_better != times_as_long
            found[name] = [ratio(b, a) if inverse else ratio(a, b) for a, b in pairs]

    def relate(self, name: str, column: str, rows: Sequence[Row]) -> None:
        """Adds a column: round by round, how many times the value of the first of some rows."""
        base = self.of(rows[0], column)
        for row in rows:
            pairs = zip(self.of(row, column), base, strict=True)
            self._found[row][name] = [ratio(a, b) for a, b in pairs]

    def as_json(self) -> list[dict[str, Any]]:
        """Returns a dict per row: title, unit, and by column the values of all rounds."""
        return [
            {"title": row.title, "unit": row.unit, "values": found}
            for row, found in self._found.items()
        ]


def ratio(value: float, base: float) -> float:
    """Returns a quotient; nothing at all is no base to compare with."""
    return value / base if base else float("nan")


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, least and greatest."""
    return median(values), min(values), max(values)


def number(value: float) -> str:
    """Returns a number with three digits or more."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
