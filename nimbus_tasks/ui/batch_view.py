"""A look at one batch as lines of text: what ``status`` and ``monitor`` show.

Data in, lines out; the caller says how wide and how many. Every line fits the width given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import seconds_between, to_iso
from nimbus_tasks.core.lifecycle import PAGE_STATES, UNKNOWN_CODE
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.ui.figures import (
    ago,
    duration,
    milliseconds,
    moment,
    pages,
    percent,
    rate,
    segments,
    time_left,
)
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.table import GAP, table
from nimbus_tasks.ui.text import clean, clip, pad, width

if TYPE_CHECKING:  # most looks find no failures, and should not wait for its import
    from nimbus_tasks.core.failures import FailureGroup

#: Colour and characters of the parts of a bar, in the order in which they fill it.
_BAR_PARTS = (("done", "█"), ("failed", "█"), ("cancelled", "▒"), ("processing", "▓"))
_MINI_BAR = 10


def batch_lines(
    view: BatchView, style: Style, columns: int, now: datetime, *, most: int = 10
) -> list[str]:
    """The whole look; at most ``most`` pages in flight, and as many failures or kinds of them."""
    return [
        *heading(view, style, columns, now),
        "",
        *progress_lines(view, style, columns),
        "",
        *count_lines(view, style, columns),
        *in_flight_lines(view, style, columns, now, most),
        *failure_lines(view.failures, view.tally.states["failed"], style, columns, most),
    ]


def heading(view: BatchView, style: Style, columns: int, now: datetime) -> list[str]:
    """Which batch it is, what it is in, and since when."""
    head = view.head
    state = f"{style.sign(view.status)} {style.state(view.status)}"
    name = f"{style.sign('batch')} {style.bold(clip(head.batch_id, columns - width(state) - 6))}"
    when = f"   created {moment(head.created)} ({ago(head.created, now)})"
    lines = [f"{name}  {state}", style.dim(clip(when, columns))]
    if head.reason and view.status in ("cancelling", "cancelled"):
        lines.append(style.dim(clip(f"   reason: {clean(head.reason)}", columns)))
    return lines


def progress_lines(view: BatchView, style: Style, columns: int) -> list[str]:
    """The bar, and how fast it fills."""
    tally = view.tally
    figure = f"{tally.ended:,}/{pages(tally.total)}  {percent(tally.ended, tally.total)}"
    room = max(5, min(40, columns - width(figure) - 8))
    counts = tally.counts
    parts = [float(counts[state]) for state, _ in _BAR_PARTS]
    widths = segments(parts, tally.total, room)
    filled = "".join(
        style.state(state, style.plain(char) * columns_)
        for (state, char), columns_ in zip(_BAR_PARTS, widths, strict=True)
        if columns_
    )
    bar = filled + style.dim(style.plain("░") * (room - sum(widths)))
    timing = tally.timing()
    facts = [
        "" if view.is_finished else rate(view.pace.per_second),
        "" if view.is_finished else time_left(view.pace),
        f"average {milliseconds(timing.average_ms)}" if timing.average_ms is not None else "",
        f"p95 {milliseconds(timing.p95_ms)}" if timing.p95_ms is not None else "",
    ]
    lines = [f"   [{bar}]  {figure}"]
    if any(facts):
        lines.append(clip("   " + " · ".join(fact for fact in facts if fact), columns))
    return lines


def count_lines(view: BatchView, style: Style, columns: int) -> list[str]:
    """How many pages are in which state; they add up to the batch's pages."""
    counts = view.tally.counts
    cells = [
        f"{style.sign(state)} {style.state(state)} {counts[state]:,}"
        for state in PAGE_STATES
        if counts[state]
    ]
    if view.stalled:
        cells.append(f"{style.sign('stalled')} {style.state('stalled')} {len(view.stalled):,}")
    return _wrap(cells, columns)


def in_flight_lines(
    view: BatchView, style: Style, columns: int, now: datetime, most: int
) -> list[str]:
    """Pages in flight with step and progress; stalled ones first, named as such."""
    if not view.in_flight:
        return []
    stalled = {page.page_id for page in view.stalled}
    rows, step_columns = [], 24 if columns >= 80 else max(8, columns // 4)
    has_bars = columns >= 70  # a narrow terminal has better use for their room
    for page in view.in_flight_by_urgency[:most]:
        elapsed = seconds_between(page.status.get("started"), to_iso(now))
        if page.page_id in stalled:
            lease = page.status.get("lease")
            step = style.state("stalled", clip(f"stalled {ago(lease, now)}", step_columns))
        else:
            step = clip(clean(page.status.get("step") or "begins"), step_columns)
        progress = mini_bar(page.status.get("progress") or 0, style, bar=has_bars)
        rows.append([clean(page.name), step, progress, duration(elapsed)])
    title = f"{style.sign('processing')} {style.bold('In flight')} ({len(view.in_flight):,})"
    return [
        "",
        title,
        *table(rows, columns, right=[3], indent=3),
        *_more(len(view.in_flight), most, style),
    ]


def failure_lines(
    failures: Sequence[PageInfo], count: int, style: Style, columns: int, most: int
) -> list[str]:
    """Failed pages with code and error, the latest first; many of one kind as a group. ``failures``
    are the latest of ``count`` in all."""
    if not count:
        return []
    from nimbus_tasks.core.failures import group_failures

    groups = group_failures(failures, most=most)
    if count > most:
        return ["", *error_groups(groups, count, style, columns)]
    lines = ["", f"{style.sign('failed')} {style.bold('Failed')} ({count:,})"]
    few: set[str] = set()
    for group in groups:
        if group.count == len(group.examples):
            few.update(page.page_id for page in group.examples)
            continue
        names = ", ".join(clean(page.name) for page in group.examples)
        lines.append(_group_line(group, len(f"{group.count:,}"), style, columns))
        lines.append(style.dim(clip(f"       {names}, …", columns)))
    named = [page for page in failures if page.page_id in few]
    lines += [f"   {failure_line(page, style, columns - 3)}" for page in named]
    return [*lines, *_more(count, len(failures), style)]


def failure_line(page: PageInfo, style: Style, columns: int) -> str:
    """A failed page: its name, and what went wrong."""
    code = clean(page.status.get("code") or UNKNOWN_CODE)
    error = clean(page.status.get("error") or "")
    # The name takes half at most, so that there is room for what went wrong.
    name = clip(clean(page.name), max(12, (columns - 3) // 2), keep_end=True)
    what = clip(f"{code}: {error}" if error else code, max(8, columns - width(name) - 2))
    return f"{name}  {style.state('failed', what)}"


def error_groups(
    groups: Sequence[FailureGroup], count: int, style: Style, columns: int
) -> list[str]:
    """Kinds of errors with how many pages each has, of ``count`` failed ones in all."""
    known = sum(group.count for group in groups)
    among = f"; by kind, of the latest {known:,}" if known < count else ""
    lines = [f"{style.sign('failed')} {style.bold('Failed')} ({count:,}{among})"]
    digits = max((len(f"{group.count:,}") for group in groups), default=1)
    return lines + [_group_line(group, digits, style, columns) for group in groups]


def _group_line(group: FailureGroup, digits: int, style: Style, columns: int) -> str:
    what = clean(f"{group.code}: {group.message}" if group.message else group.code)
    again = " (may pass)" if group.looks_transient else ""
    text = clip(what, max(8, columns - digits - 6 - len(again)))
    count = pad(f"{group.count:,}", digits, right=True)
    return f"   {count} × {style.state('failed', text)}{style.dim(again)}"


def mini_bar(progress: float, style: Style, *, bar: bool = True) -> str:
    """A page's progress, in percent, with a ``bar`` or without."""
    share = min(100.0, max(0.0, progress))
    percentage = f"{int(share):3d}%"
    if not bar:
        return percentage
    filled = int(_MINI_BAR * share / 100)
    full = style.state("done", style.plain("▓") * filled)
    rest = style.dim(style.plain("░") * (_MINI_BAR - filled))
    return f"[{full}{rest}] {percentage}"


def _more(count: int, shown: int, style: Style) -> list[str]:
    return [style.dim(f"   … and {count - shown:,} more")] if count > shown else []


def _wrap(cells: Sequence[str], columns: int) -> list[str]:
    lines = [""]
    for cell in cells:
        line = f"{lines[-1]}   {cell}"
        if lines[-1] and width(line) > columns:
            lines.append(f"   {cell}")
        else:
            lines[-1] = line
    return lines


#: The columns that a narrow table of batches gives up, in this order. The number of pages can be
#: told from the others; a status keeps its beginning; the id, which a person types next, is cut
#: last.
_GIVES_WAY = ("pages", "created", "status", "cancelled", "pending", "failed", "done")
_SHORT_STATUS = 12


def batch_table(
    rows: Sequence[tuple[str, str, str, int, Mapping[str, int | None]]],
    style: Style,
    columns: int,
    now: datetime,
) -> list[str]:
    """Batches as a table. A row has the id, the status, when it was created, the number of pages,
    and its summary: ``completed``, ``failed``, ``pending`` and ``cancelled``."""
    has_cancelled = any(summary.get("cancelled") for *_, summary in rows)
    figures = ["done", "failed", "pending", *(["cancelled"] if has_cancelled else []), "pages"]
    titles = ["", "batch", "status", *figures, "created"]
    cells = [_batch_cells(row, style, now) for row in rows]
    needs = {name: max([width(name), *(width(one[name]) for one in cells)]) for name in titles}
    for title in _GIVES_WAY:
        if sum(needs[one] + GAP for one in titles) - GAP <= columns:
            break
        if title == "status":
            needs[title] = min(needs[title], _SHORT_STATUS)
        elif title in titles:
            titles.remove(title)
    lines = [[style.dim(title) for title in titles]]
    for one, (_, status, *_) in zip(cells, rows, strict=True):
        one["status"] = style.state(status, clip(one["status"], needs["status"]))
        lines.append([one[title] for title in titles])
    right = [titles.index(title) for title in figures if title in titles]
    return table(lines, columns, flexible=titles.index("batch"), right=right)


def _batch_cells(
    row: tuple[str, str, str, int, Mapping[str, int | None]], style: Style, now: datetime
) -> dict[str, str]:
    """Its cells by their titles; the status is not coloured yet, as it may be cut."""
    batch_id, status, created, page_count, summary = row
    failed = summary["failed"] or 0
    return {
        "": style.sign(status),
        "batch": batch_id,
        "status": status.replace("_", " "),
        "done": f"{summary['completed'] or 0:,}",
        "failed": style.state("failed", f"{failed:,}") if failed else "0",
        "pending": f"{summary['pending'] or 0:,}",
        "cancelled": f"{summary.get('cancelled') or 0:,}",
        "pages": f"{page_count:,}",
        "created": ago(created, now),
    }


def padded(label: str, value: str, columns: int = 16) -> str:
    """``label`` and ``value``, the values of several lines under one another."""
    return f"   {pad(label, columns)} {value}"
