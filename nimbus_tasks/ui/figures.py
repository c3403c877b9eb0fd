"""Figures in words: durations, ranges, rates, sizes, percentages, bars."""

from __future__ import annotations

from datetime import datetime

from nimbus_tasks.core.clock import parse_iso
from nimbus_tasks.core.pace import Pace


def duration(seconds: float | None) -> str:
    """``850 ms``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``; ``–`` where unknown."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{max(0, seconds) * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return _two(whole // size, name, whole % size // part, part_name)
    return _two(whole // 60, "min", whole % 60, "s")


def _two(count: int, name: str, rest: int, rest_name: str) -> str:
    return f"{count} {name}" + (f" {rest} {rest_name}" if rest else "")


def milliseconds(value: float | None) -> str:
    """A duration that is given in milliseconds."""
    return duration(None if value is None else value / 1000)


def time_left(pace: Pace) -> str:
    """The range that is left, e.g. ``2–3 min left``; empty where nothing is known."""
    low, high = pace.seconds_left_low, pace.seconds_left_high
    if low is None or high is None:
        return ""
    if high < 2:
        return "a moment left"
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    size, name = next(((s, n) for s, n in units if low >= s), (1, "s"))
    first, last = int(low / size), -int(-high // size)
    return f"{last} {name} left" if first == last else f"{first}–{last} {name} left"


def money(amount: float) -> str:
    """A sum in whatever unit the prices are: two places, or as many as a small one needs."""
    if amount >= 1 or not amount:
        return f"{amount:,.2f}"
    return f"{amount:.6f}".rstrip("0")


def rate(per_second: float | None) -> str:
    """Pages a second, or a minute or an hour where that is the handier figure."""
    if per_second is None:
        return ""
    units = ((1, "s"), (60, "min"), (3600, "h"))
    per, name = next((unit for unit in units if per_second * unit[0] >= 1), units[-1])
    figure = short(per_second * per)
    return f"{figure} page{'' if figure == '1' else 's'}/{name}"


def short(number: float) -> str:
    """A rate: one place, and none from 100 on."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}".removesuffix(".0")


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; 100 % only when all of it is there."""
    if not whole:
        return "0%"
    share = 100 * part / whole
    return f"{int(share)}%" if share < 100 else "100%"


def size(count: float) -> str:
    """Bytes in B, KB, MB or GB."""
    if count < 1000:
        return f"{count:.0f} B"
    for name in ("KB", "MB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {name}"
    count /= 1000
    return f"{count:.1f} GB"


def pages(count: int) -> str:
    """``1 page``, ``2,000 pages``."""
    return f"{count:,} page" + ("" if count == 1 else "s")


def moment(text: str) -> str:
    """A recorded time as a person reads it, in local time; what is no time is shown as nothing."""
    recorded = parse_iso(text)
    try:
        return recorded.astimezone().strftime("%Y-%m-%d %H:%M:%S") if recorded else "–"
    except (OverflowError, OSError):  # the year 9999, east of Greenwich
        return "–"


def ago(text: str | None, now: datetime) -> str:
    """How long ago a recorded time is."""
    recorded = parse_iso(text)
    return f"{duration((now - recorded).total_seconds())} ago" if recorded else "–"


def segments(parts: list[float], total: float, columns: int) -> list[int]:
    """Columns for each part of a bar: they never overfill it, and no part that is there vanishes
    while there is room, nor does the bar look full before it is."""
    if not total or columns <= 0:
        return [0] * len(parts)
    filled = int(columns * min(1.0, sum(parts) / total))
    there = sum(part > 0 for part in parts)
    widths = [
        max(1 if part and filled >= there else 0, int(columns * part / total)) for part in parts
    ]
    while sum(widths) > filled and max(widths) > 0:
        widths[widths.index(max(widths))] -= 1
    while sum(widths) < filled and any(parts):
        widths[parts.index(max(parts))] += 1
    return widths
