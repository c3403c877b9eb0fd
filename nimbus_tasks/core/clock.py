"""Time as the records write it: ISO 8601, UTC, with ``Z``, so that text order is time order."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

UTC = timezone.utc
#: What a worker may give for its lease: an hour, which it renews meanwhile. Longer ones are not
#: believed, or a record that says the year 9999 would never be taken up again.
LONGEST_LEASE_SECONDS = 3600.0


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def to_iso(moment: datetime) -> str:
    """``2026-11-24T08:13:02.123456Z``: microseconds, so that items queued together keep order."""
    # Not strftime, which takes twice as long, several times a page.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def now_iso() -> str:
    """The current time as the records write it."""
    return to_iso(utc_now())


def iso_after(seconds: float, *, start: datetime | None = None) -> str:
    """The moment ``seconds`` after ``start`` (now, if left out; negative looks back)."""
    return to_iso((start or utc_now()) + timedelta(seconds=seconds))


def parse_iso(text: object) -> datetime | None:
    """Read a time that we, JavaScript or somebody else wrote; ``None`` if it is not one."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00", 1))
        if moment.tzinfo is None:
            return moment.replace(tzinfo=UTC)
        moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the first or the last day of all, elsewhere
        return None
    return moment


def seconds_between(start: object, end: object) -> float | None:
    """Seconds from one recorded time to another; ``None`` where one of them is no time."""
    first, second = parse_iso(start), parse_iso(end)
    if first is None or second is None:
        return None
    return (second - first).total_seconds()
