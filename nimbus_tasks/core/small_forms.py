"""Statuses in small: what a listing tells of pages, checked, as anybody may have written it.

Of 100,000 pages nearly all have metadata of a few shapes, so it is checked by columns: all the
times of a thousand pages in one go, all their figures in another. Only where a column has something
that does not belong there are the pages looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nimbus_tasks.core.columns import Columns, columns_of
from nimbus_tasks.core.keys import HIGHEST_PRIORITY, LOWEST_PRIORITY, are_ids
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.core.wire import (
    MAX_NUMBER,
    cost_field,
    count_field,
    id_field,
    number_field,
    present,
    priority_field,
    text_field,
    time_field,
)

Small = Mapping[str, Any]


def small_forms(listed: Sequence[Small | None]) -> tuple[list[Small | None], list[Columns]]:
    """The metadata of statuses, each with fields of the right types only (others count as absent);
    ``None`` for one that does not tell state and batch: its value is to be read then.

    Beside them the columns of those that are not ``None``.
    """
    try:
        columns = columns_of(listed)  # type: ignore[arg-type]  # of a None: TypeError
        if all(map(_are_sound, columns)):
            return list(listed), columns
    except TypeError:  # no metadata, or a value that is not even of the kind that can be compared
        pass
    forms = [None if metadata is None else small_form(metadata) for metadata in listed]
    return forms, columns_of(form for form in forms if form is not None)


def small_form(metadata: Small) -> Small | None:
    """The metadata of one status, as :func:`small_forms` checks it."""
    state, batch_id = metadata.get("status"), id_field(metadata.get("batch_id"))
    if not isinstance(state, str) or state not in _STATES or batch_id is None:
        return None
    checked = {name: read(metadata.get(name)) for name, read in _FIELDS.items()}
    return present(status=state, batch_id=batch_id, **checked)


def status_from_metadata(small: Small) -> PageStatus:
    """The status record as far as its small form tells it."""
    known = {name: read(small.get(name)) for name, read in _FIELDS.items()}
    fields = {"updated": "", **present(**known)}
    return PageStatus(state=small["status"], batch_id=small["batch_id"], **fields)


Column = Sequence[Any]


def _are_sound(columns: Columns) -> bool:
    """Whether every value is one that :func:`small_form` would leave as it is."""
    return columns.keys() >= {"status", "batch_id"} and all(
        (check := _CHECKS.get(name)) is not None and check(column)
        for name, column in columns.items()
    )


def _are_texts(column: Column) -> bool:
    return set(map(type, column)) == {str}


def _are_times(column: Column) -> bool:
    joined = "".join(column)  # which refuses, as a TypeError, what is no text
    return (
        min(column) >= "20"
        and max(column) < "21"
        and max(map(len, column)) <= 40
        and joined.isascii()
        # Fewer than a time may have, at a third of what isprintable takes.
        and not joined.encode().translate(None, _CHARACTERS_OF_TIMES)
    )


_CHARACTERS_OF_TIMES = b"0123456789-:.+TZ"


def _are_counts(column: Column) -> bool:
    return set(map(type, column)) == {int} and min(column) >= 0 and max(column) < MAX_NUMBER


def _are_numbers(column: Column) -> bool:
    if not set(map(type, column)) <= {int, float}:
        return False
    is_in_range = min(column) > -MAX_NUMBER and max(column) < MAX_NUMBER
    # With a NaN among them, which no comparison need find, the sum is one, and equals nothing.
    return is_in_range and (total := sum(column)) == total


def _are_priorities(column: Column) -> bool:
    is_whole = set(map(type, column)) == {int}
    return is_whole and min(column) >= LOWEST_PRIORITY and max(column) <= HIGHEST_PRIORITY


_STATES = frozenset(PAGE_STATES)
_TIMES = ("updated", "uploaded", "queued_at", "started", "lease", "completed")
_TEXTS = ("path", "step", "error", "code")
_COUNTS = ("attempts", "duration_ms", "changes", "tokens_in", "tokens_out")
_NUMBERS = ("progress", "confidence")
_FIELDS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(_TIMES, time_field),
    **dict.fromkeys(_TEXTS, text_field),
    **dict.fromkeys(_COUNTS, count_field),
    **dict.fromkeys(_NUMBERS, number_field),
    "cost": cost_field,
    "priority": priority_field,
    "superseded_by": id_field,
}
_CHECKS: dict[str, Callable[[Column], bool]] = {
    **dict.fromkeys(_TIMES, _are_times),
    **dict.fromkeys(_TEXTS, _are_texts),
    **dict.fromkeys(_COUNTS, _are_counts),
    **dict.fromkeys(_NUMBERS, _are_numbers),
    "cost": lambda column: _are_numbers(column) and min(column) >= 0,
    "priority": _are_priorities,
    "superseded_by": lambda column: _are_texts(column) and are_ids(set(column)),
    "batch_id": lambda column: _are_texts(column) and are_ids(set(column)),
    "status": lambda column: _STATES.issuperset(column),
}
