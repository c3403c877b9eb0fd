"""Many objects with nearly the same fields, taken apart into columns.

What is asked of a thousand pages, whether a field of theirs is sound or what it adds up to, is then
asked of a few tuples and not of a thousand dictionaries, at a fifth of the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: One value an object, by field; all objects of it have the same fields.
Columns = Mapping[str, Sequence[Any]]


def columns_of(objects: Iterable[Mapping[str, Any]]) -> list[Columns]:
    """The objects' values by field: one table for each set of fields that some of them have."""
    by_shape: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for one in objects:
        by_shape[tuple(one)].append(one.values())
    return [
        dict(zip(shape, zip(*rows, strict=True), strict=True)) for shape, rows in by_shape.items()
    ]


def rows_where(columns: Columns, name: str, value: object) -> Columns:
    """The part of a table that has ``value`` in column ``name``."""
    if set(columns[name]) == {value}:
        return columns
    at = [number for number, one in enumerate(columns[name]) if one == value]
    return {field: [column[number] for number in at] for field, column in columns.items()}
