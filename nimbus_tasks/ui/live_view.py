"""One frame of the live view of a batch, fitted to the terminal: data in, lines out.

What matters most stays when there is little room: the batch, its bar, its counts, and the line that
says what is wrong or how to leave. Then come pages in flight, then the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.failures import group_failures
from nimbus_tasks.ui.batch_view import (
    count_lines,
    error_groups,
    heading,
    in_flight_lines,
    progress_lines,
)
from nimbus_tasks.ui.style import Style

#: A wider frame would say no more, and more of its lines would be broken in a terminal that is made
#: narrower.
MAX_COLUMNS = 120
#: A frame may have so many lines; a longer one leaves a third of the terminal to what stays above.
_SMALL = 14
#: With fewer pages in flight than this there is no title above them.
_FEW = 3


@dataclass(frozen=True)
class _Layout:
    """How roomy a frame is: with empty lines, with the time of creation, and how many kinds of
    errors it names (``groups``)."""

    gaps: bool
    created: bool
    groups: int


_LAYOUTS = (
    _Layout(gaps=True, created=True, groups=5),
    _Layout(gaps=True, created=True, groups=2),
    _Layout(gaps=True, created=False, groups=1),
    _Layout(gaps=False, created=False, groups=0),
)


def live_lines(
    view: BatchView,
    style: Style,
    columns: int,
    rows: int,
    now: datetime,
    footer: Sequence[str] = (),
) -> list[str]:
    """A frame of at most ``rows`` lines: the roomiest layout that leaves place for some pages in
    flight, and as many of those as fit. The last lines are ``footer``."""
    columns, rows = min(columns, MAX_COLUMNS), min(rows, max(_SMALL, rows * 2 // 3))
    wanted = min(6, 2 + len(view.in_flight)) if view.in_flight else 0
    above, below = [""], [*footer]
    for layout in _LAYOUTS:
        above = list(_above(view, style, columns, now, layout))
        below = list(_below(view, style, columns, layout, footer))
        if len(above) + len(below) + wanted <= rows:
            break
    room = rows - len(above) - len(below)
    return [*above, *_in_flight(view, style, columns, now, room), *below][:rows]


def _above(
    view: BatchView, style: Style, columns: int, now: datetime, layout: _Layout
) -> Iterator[str]:
    first, *rest = heading(view, style, columns, now)
    yield first
    yield from rest if layout.created else ()
    yield from [""] if layout.gaps else ()
    yield from progress_lines(view, style, columns)
    yield from [""] if layout.gaps else ()
    yield from count_lines(view, style, columns)


def _below(
    view: BatchView, style: Style, columns: int, layout: _Layout, footer: Sequence[str]
) -> Iterator[str]:
    failed = view.tally.states["failed"]
    if failed and layout.groups:
        yield from [""] if layout.gaps else ()
        groups = group_failures(view.failures, most=layout.groups)
        yield from error_groups(groups, failed, style, columns)
    if footer:
        yield from [""] if layout.gaps else ()
        yield from footer


def _in_flight(
    view: BatchView, style: Style, columns: int, now: datetime, room: int
) -> Sequence[str]:
    """As many pages in flight as fit, and how many more there are."""
    # In front a gap and a title, which are given up where they leave no place for some pages.
    for front in (2, 1, 0):
        most = room - front
        if len(view.in_flight) > most:
            most -= 1  # for the line that says so
        if most >= min(_FEW, len(view.in_flight)) or (front == 0 and most > 0):
            return in_flight_lines(view, style, columns, now, most)[2 - front :]
    return []
