"""How fast a batch goes and when it will be done, as a range that says how sure that is.

Pure: figures of a :class:`~nimbus_tasks.core.lifecycle.Tally` and a moment in, figures out. It
needs no memory of earlier looks, so that ``status`` run once knows as much as a monitor.
"""

from __future__ import annotations

from datetime import datetime
from math import sqrt
from typing import NamedTuple

from nimbus_tasks.core.clock import iso_after, seconds_between, to_iso
from nimbus_tasks.core.lifecycle import Tally

#: What happened longer ago says little about the next minutes.
WINDOW_SECONDS = 60.0
#: Below this many completions in the window, look back further instead.
ENOUGH = 8
LONG_WINDOW_SECONDS = 900.0


class Pace(NamedTuple):
    """Pages a second, and the seconds left at that rate: likely at least, likely at most.

    ``None`` where too little happened lately to say.
    """

    per_second: float | None
    seconds_left_low: float | None
    seconds_left_high: float | None


UNKNOWN = Pace(None, None, None)


def pace(tally: Tally, now: datetime) -> Pace:
    """The pace of the last minute; of the last quarter of an hour where that says too little."""
    for window in (WINDOW_SECONDS, LONG_WINDOW_SECONDS):
        measured = _pace_in(tally, now, window)
        if measured is not None:
            return measured
    return UNKNOWN


def _pace_in(tally: Tally, now: datetime, window: float) -> Pace | None:
    since = iso_after(-window, start=now)
    recent = [completed for completed in tally.completions if completed >= since]
    enough = ENOUGH if window < LONG_WINDOW_SECONDS else 1
    if len(recent) < enough:
        return None
    # The work may have begun within the window: then the time since its beginning counts. To open
    # at the first of several endings would take pages that end together for a fast batch.
    opens = since
    if len(recent) == len(tally.completions) and tally.first_started is not None:
        opens = max(since, tally.first_started)
    elapsed = seconds_between(opens, to_iso(now)) or 0.0
    rate = len(recent) / max(elapsed, 0.001)
    # Arrivals scatter by the square root of their number; one page alone says "half to double".
    spread = min(0.5, 1 / sqrt(len(recent)))
    return Pace(rate, tally.pending / (rate * (1 + spread)), tally.pending / (rate * (1 - spread)))
