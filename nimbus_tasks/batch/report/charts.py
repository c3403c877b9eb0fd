"""Charts as SVG, made of figures alone: no text from outside gets into one.

A chart's drawing is stretched to the width that there is, so its labels stand beside it as text.
Each has a sentence that says what it shows, and its figures as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from nimbus_tasks.core.lifecycle import percentile
from nimbus_tasks.ui.figures import duration, milliseconds, pages

#: About as many bars as can be told apart on a telephone.
_BARS = 48
#: Fewer would be blocks rather than bars.
_LEAST_BARS = 8
_HEIGHT = 100


@dataclass(frozen=True)
class Chart:
    """``svg`` is the drawing; ``top`` what its full height stands for, ``ticks`` the labels below
    it from left to right; ``columns`` and ``table`` its figures."""

    title: str
    summary: str
    svg: str
    top: str
    ticks: tuple[str, ...]
    columns: tuple[str, ...]
    table: list[tuple[str, ...]]


def throughput(done_at: Sequence[float], failed_at: Sequence[float], start: float | None) -> Chart:
    """Pages that ended over time, done and failed; ``start`` is when the first one was begun. All
    in seconds since 1970; at least one page has ended."""
    moments = [*done_at, *failed_at]
    first, last = min(moments), max(moments)
    # A start after the first ending is of another clock or another attempt.
    begin = start if start is not None and start <= first else first
    step = time_step((last - begin) / _BARS) or 1.0
    count = max(_LEAST_BARS, floor((last - begin) / step) + 1)
    done, failed = (_counts(at, begin, step, count) for at in (done_at, failed_at))
    peak = max(map(sum, zip(done, failed, strict=True)))
    spans = [_span(number * step, step) for number in range(count)]
    figures = list(zip(spans, done, failed, strict=True))
    return Chart(
        title="Throughput",
        summary=(
            f"{pages(len(moments))} ended within {duration(last - begin)};"
            f" at most {peak:,} in {duration(step)}."
        ),
        svg=_bars(
            [("done", done), ("failed", failed)],
            [f"{span}: {d:,} done, {f:,} failed" for span, d, f in figures],
        ),
        top=f"{peak:,} in {duration(step)}",
        ticks=("start", duration(count * step / 2), duration(count * step)),
        columns=("after", "done", "failed"),
        table=[(span, f"{d:,}", f"{f:,}") for span, d, f in figures if d or f],
    )


def durations(values_ms: Iterable[float]) -> Chart:
    """How long done pages took, of which there is at least one. The last bar has all that took
    longer than 99 of 100."""
    ordered = sorted(values_ms)
    half, most, longest = (percentile(ordered, share) for share in (0.5, 0.95, 1))
    step = nice_step(max(percentile(ordered, 0.99), 1) / _BARS * 2, least=1.0)
    count = max(_LEAST_BARS, floor(percentile(ordered, 0.99) / step) + 1)
    counts = _counts(ordered, 0, step, count)
    spans = [
        f"{milliseconds(number * step)} to {milliseconds((number + 1) * step)}"
        for number in range(count)
    ]
    if longest >= count * step:
        spans[-1] = f"{milliseconds((count - 1) * step)} or more"
    more = " and more" if longest >= count * step else ""
    return _histogram(
        "Time a page",
        f"Of those done half took up to {milliseconds(half)}, 95 of 100 up to {milliseconds(most)},"
        f" the longest {milliseconds(longest)}.",
        bars=("done", counts),
        spans=("time", spans),
        ticks=("0", milliseconds(count * step / 2), milliseconds(count * step) + more),
    )


def confidences(values: Sequence[float]) -> Chart:
    """The confidences, 0 to 1, of done pages, of which there is at least one."""
    step, count = 0.05, 20
    # A confidence of exactly 0.3 is to stand in the bar that begins with it.
    counts = _counts([value + 1e-9 for value in values], 0, step, count)
    spans = [f"{number * step:.2f} to {(number + 1) * step:.2f}" for number in range(count)]
    ordered = sorted(values)
    return _histogram(
        "Confidence",
        f"{sum(values) / len(values):.2f} on average; from {ordered[0]:.2f} to {ordered[-1]:.2f}.",
        bars=("queued", counts),
        spans=("confidence", spans),
        ticks=("0", "0.5", "1"),
    )


def _histogram(
    title: str,
    summary: str,
    *,
    bars: tuple[str, list[int]],
    spans: tuple[str, list[str]],
    ticks: tuple[str, ...],
) -> Chart:
    """How many pages are in which span: ``bars`` in the colour of a state, ``spans`` of what."""
    (_, counts), (what, names) = bars, spans
    figures = list(zip(names, counts, strict=True))
    return Chart(
        title=title,
        summary=summary,
        svg=_bars([bars], [f"{name}: {pages(count)}" for name, count in figures]),
        top=pages(max(counts)),
        ticks=ticks,
        columns=(what, "pages"),
        table=[(name, f"{count:,}") for name, count in figures if count],
    )


def state_bar(counts: Sequence[tuple[str, int]]) -> str:
    """Pages by state as one bar, in that order; what is there is never too thin to be seen."""
    total = sum(count for _, count in counts) or 1
    rects, x = [], 0.0
    least = [(state, max(count / total, 0.004)) for state, count in counts if count]
    scale = 1000 / sum(width for _, width in least) if least else 0
    for state, share in least:
        width = share * scale
        rects.append(f'<rect class="fill-{state}" x="{x:.1f}" width="{width:.1f}" height="10"/>')
        x += width
    label = ", ".join(f"{count:,} {state}" for state, count in counts if count)
    return (
        '<svg class="state-bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(label)}">{"".join(rects)}</svg>'
    )  # fmt: skip


def share_bar(share: float) -> str:
    """A thin bar that is ``share`` (0 to 1) full, beside a figure that says the same."""
    width = 100 * min(1.0, max(0.0, share))
    return (
        '<svg class="share-bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.1f}" height="1"/></svg>'
    )


def nice_step(about: float, *, least: float = 0.0) -> float:
    """The next of 1, 2 and 5 times a power of ten; 0 for nothing."""
    about = max(about, least)
    if about <= 0:
        return 0.0
    power = 10.0 ** floor(log10(about))
    return next((m * power for m in (1, 2, 5) if m * power >= about * 0.999_999), 10 * power)


def time_step(about: float) -> float:
    """The next span that a clock knows; the next nice number of seconds, or days, beyond them."""
    known = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    if about <= 10:
        return nice_step(about)
    return next((float(span) for span in known if span >= about), 86400 * nice_step(about / 86400))


def _counts(values: Iterable[float], begin: float, step: float, count: int) -> list[int]:
    """How many values lie in each of ``count`` steps; what lies beyond is in the last."""
    counts = [0] * count
    for value in values:
        counts[max(0, min(count - 1, int((value - begin) / step)))] += 1
    return counts


def _span(begin: float, step: float) -> str:
    return f"{duration(begin) if begin else '0'} to {duration(begin + step)}"


def _bars(series: Sequence[tuple[str, Sequence[int]]], tips: Sequence[str]) -> str:
    """Bars of one or more series on top of each other, each with what it stands for."""
    columns = list(zip(*(values for _, values in series), strict=True))
    peak = max(map(sum, columns)) or 1
    drawn = []
    for number, (values, tip) in enumerate(zip(columns, tips, strict=True)):
        if not sum(values):
            continue
        y = float(_HEIGHT)
        parts = []
        for (state, _), value in zip(series, values, strict=True):
            if value:
                height = max(1.5, _HEIGHT * value / peak)
                y = max(0.0, y - height)
                parts.append(
                    f'<rect class="fill-{state}" x="{number + 0.08:g}" y="{y:.1f}"'
                    f' width="0.84" height="{height:.1f}"/>'
                )
        drawn.append(f"<g><title>{escape(tip)}</title>{''.join(parts)}</g>")
    return (
        f'<svg viewBox="0 0 {len(columns)} {_HEIGHT}" preserveAspectRatio="none"'
        f' aria-hidden="true">{"".join(drawn)}</svg>'
    )
