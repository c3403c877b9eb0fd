"""A look at a batch: every line fits, the counts add up, nothing in it is obeyed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.lifecycle import PAGE_STATES, BatchStatus, Tally, batch_status
from nimbus_tasks.core.pace import UNKNOWN, Pace
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.ui.batch_view import (
    batch_lines,
    batch_table,
    count_lines,
    failure_lines,
    in_flight_lines,
    mini_bar,
    padded,
    progress_lines,
)
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import width

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)
FULL = Style(colour=True, unicode=True)
PLAIN = Style(colour=False, unicode=True)
BARE = Style(colour=False, unicode=False)
BATCH = "batch_20261124_115500"
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def before(seconds: float) -> str:
    """A recorded time so long before now."""
    return to_iso(NOW - timedelta(seconds=seconds))


def a_view(
    *pages: Mapping[str, Any],
    intent: str = "run",
    listed: int = 0,
    speed: Pace = UNKNOWN,
    reason: str | None = None,
) -> BatchView:
    """A look at a batch of those pages, by their status metadata, and of more that only listed."""
    known = [PageInfo(f"page_{number:012x}", page) for number, page in enumerate(pages)]
    tally = Tally(max(listed, len(known)))
    for page in known:
        tally.add(page.status)
    status = batch_status(intent, tally.counts).value
    in_flight = [page for page in known if page.status["status"] == "processing"]
    return BatchView(
        BatchHead(
            BATCH, "proj_0123456789ab", before(300), tally.total, status, intent, reason=reason
        ),
        tally,
        status,
        speed,
        in_flight,
        [page for page in in_flight if (page.status.get("lease") or "9") < to_iso(NOW)],
        [page for page in known if page.status["status"] == "failed"],
    )


def in_flight(path: str = "dist/page.html", **fields: Any) -> dict[str, Any]:
    """A page that somebody is at work on."""
    return {
        "status": "processing",
        "path": path,
        "started": before(5),
        "lease": before(-30),
        **fields,
    }


def failed(path: str = "dist/page.html", **fields: Any) -> dict[str, Any]:
    """A page that failed."""
    return {"status": "failed", "path": path, "code": "broken", "error": "no heading", **fields}


def stalled(path: str = "dist/page.html", ago: float = 90, **fields: Any) -> dict[str, Any]:
    """A page in flight whose holder has not been heard of."""
    return in_flight(path, lease=before(ago), **fields)


ANY = st.one_of(
    st.text(st.characters(), max_size=120),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Mn", "Lo", "So"]), max_size=60),
    st.sampled_from(
        ["", "漢字" * 40, "📦⚙️" * 30, "\x1b[2J\x1b]52;c;x\x07", "e\u0301" * 90, "a/" * 90]
    ),
)
TIME = st.integers(0, 50).map(before) | st.none() | st.sampled_from(["", "soon", "\x1b[31m"])
PAGE = st.fixed_dictionaries(
    {"status": st.sampled_from(PAGE_STATES)},
    optional={
        "path": ANY,
        "step": ANY,
        "error": ANY,
        "code": ANY,
        "progress": st.floats(0, 100) | st.none(),
        "started": TIME,
        "lease": st.integers(1, 50).map(lambda seconds: before(-seconds)),
        "duration_ms": st.integers(0, 10**8),
    },
)
SPEED = st.builds(
    lambda rate, low, more: Pace(rate, low, low + more),
    st.floats(0, 1e4),
    st.floats(0, 1e7),
    st.floats(0, 1e7),
) | st.just(UNKNOWN)
VIEW = st.builds(
    lambda pages, intent, listed, speed, reason: a_view(
        *pages, intent=intent, listed=listed, speed=speed, reason=reason
    ),
    st.lists(PAGE, max_size=14),
    st.sampled_from(["upload", "run", "retry", "cancel"]),
    st.integers(0, 100_000),
    SPEED,
    ANY | st.none(),
)
COLUMNS = st.sampled_from([60, 80])


@PROPERTY
@given(VIEW, COLUMNS, st.sampled_from([FULL, PLAIN]), st.integers(0, 12))
def test_every_line_fits(view: BatchView, columns: int, style: Style, most: int) -> None:
    for line in batch_lines(view, style, columns, NOW, most=most):
        assert width(line) <= columns, line


@PROPERTY
@given(VIEW, COLUMNS)
def test_without_colour_no_line_has_a_control_character(view: BatchView, columns: int) -> None:
    for line in batch_lines(view, PLAIN, columns, NOW):
        assert not re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)
        line.encode("utf-8")


@PROPERTY
@given(VIEW, COLUMNS)
def test_colours_are_the_only_escape_sequences_and_change_no_text(
    view: BatchView, columns: int
) -> None:
    coloured = batch_lines(view, FULL, columns, NOW)

    assert [_SGR.sub("", line) for line in coloured] == batch_lines(view, PLAIN, columns, NOW)


def widest_in_flight(columns: int, silent: float, worked: float) -> int:
    """The widest line on a page that is stalled so long, of a worker who began so long ago."""
    page = stalled("dist/a/long/path/to/some/page.html", silent, started=before(worked))
    return max(map(width, in_flight_lines(a_view(page), PLAIN, columns, NOW, 5)))


@pytest.mark.parametrize("silent", [90, 3599, 86_399])
@pytest.mark.parametrize("worked", [5, 3599, 86_399])
def test_a_stalled_page_fits_80_columns_however_long_ago(silent: float, worked: float) -> None:
    assert widest_in_flight(80, silent, worked) <= 80


@pytest.mark.parametrize("silent", [90, 3599, 86_399])
@pytest.mark.parametrize("worked", [5, 3599, 86_399])
def test_a_stalled_page_fits_60_columns_however_long_ago(silent: float, worked: float) -> None:
    assert widest_in_flight(60, silent, worked) <= 60


@pytest.mark.parametrize("columns", [60, 80])
def test_every_line_fits_an_ascii_stream_too(columns: int) -> None:
    view = a_view(failed("dist/" + "page" * 40, error="error " * 40))

    for line in batch_lines(view, BARE, columns, NOW):
        assert width(BARE.plain(line)) <= columns


@pytest.mark.parametrize(
    "state",
    [pytest.param(state) for state in PAGE_STATES],
)
def test_an_ascii_stream_gets_ascii(state: str) -> None:
    page = {"status": state, "path": "a/" * 90, "started": before(5), "duration_ms": 3}
    view = a_view(page, *[{"status": "done"}] * 3, speed=Pace(1.5, 200.0, 400.0))

    for line in batch_lines(view, BARE, 80, NOW):
        assert BARE.plain(line).isascii(), line


@PROPERTY
@given(VIEW, COLUMNS)
def test_the_counts_that_are_shown_add_up_to_the_pages_of_the_batch(
    view: BatchView, columns: int
) -> None:
    text = " ".join(count_lines(view, BARE, columns))
    shown = {
        name: int(figure.replace(",", ""))
        for name, figure in re.findall(r"([a-z]+) ([\d,]+)", text)
    }

    assert sum(shown.get(state, 0) for state in PAGE_STATES) == view.tally.total
    assert shown.get("stalled", 0) == len(view.stalled) <= shown.get("processing", 0)


def test_a_state_that_no_page_is_in_is_not_listed() -> None:
    view = a_view({"status": "done"}, {"status": "done"}, failed())

    assert count_lines(view, BARE, 80) == ["   ok done 2   !! failed 1"]


def test_pages_that_were_only_listed_are_counted_as_uploaded() -> None:
    view = a_view({"status": "done"}, listed=2000)

    assert count_lines(view, BARE, 80) == ["   >> uploaded 1,999   ok done 1"]


def test_counts_that_do_not_fit_go_on_in_the_next_line() -> None:
    pages = [{"status": state} for state in PAGE_STATES if state != "processing"]
    view = a_view(*pages, stalled(), listed=100_000)
    lines = count_lines(view, BARE, 60)

    assert len(lines) == 2
    assert max(map(width, lines)) <= 60
    assert " ".join(lines).split()[-3:] == ["??", "stalled", "1"]


@pytest.mark.parametrize("intent", ["run", "cancel"])
def test_it_begins_with_which_batch_it_is_and_what_it_is_in(intent: str) -> None:
    first, second, *_ = batch_lines(a_view({"status": "queued"}, intent=intent), PLAIN, 80, NOW)

    assert BATCH in first
    assert first.endswith("queued" if intent == "run" else "cancelling")
    assert second.endswith("(5 min ago)")


@pytest.mark.parametrize("status", [status.value for status in BatchStatus])
def test_every_status_is_named_in_words(status: str) -> None:
    view = a_view({"status": "done"})
    told = BatchView(view.head, view.tally, status, UNKNOWN)

    assert batch_lines(told, PLAIN, 60, NOW)[0].endswith(f" {status.replace('_', ' ')}")


def test_a_cancelled_batch_says_why() -> None:
    view = a_view({"status": "cancelled"}, intent="cancel", reason="wrong\x1b[2J folder\nsorry")

    assert "   reason: wrong folder sorry" in batch_lines(view, PLAIN, 80, NOW)


def test_a_batch_that_went_on_does_not_say_why_it_was_cancelled_once() -> None:
    view = a_view({"status": "queued"}, intent="retry", reason="wrong folder")

    assert "wrong folder" not in "\n".join(batch_lines(view, PLAIN, 80, NOW))


def test_the_bar_says_how_many_have_ended() -> None:
    pages = [{"status": "done"}, failed(), {"status": "cancelled"}, in_flight()]

    assert progress_lines(a_view(*pages, listed=8), PLAIN, 80)[0].endswith("]  3/8 pages  37%")


@pytest.mark.parametrize("ended", [0, 1, 50, 199, 200])
def test_the_bar_is_full_when_all_have_ended_and_not_before(ended: int) -> None:
    (line,) = progress_lines(a_view(*[{"status": "done"}] * ended, listed=200), PLAIN, 80)

    assert ("░" not in line) == ("100%" in line) == (ended == 200)


def test_pages_in_flight_and_cancelled_look_different_from_done_ones_without_colour() -> None:
    pages = [*[{"status": "done"}] * 5, *[{"status": "cancelled"}] * 5, *[in_flight()] * 5]
    (line,) = progress_lines(a_view(*pages, listed=20), PLAIN, 80)

    assert re.search(r"\[█+▒+▓+░+\]", line)


def test_what_is_at_work_says_how_fast_and_how_long_it_will_be() -> None:
    view = a_view({"status": "done", "duration_ms": 1500}, listed=9, speed=Pace(0.5, 130.0, 170.0))

    assert progress_lines(view, PLAIN, 80)[1:] == [
        "   30 pages/min · 2–3 min left · average 1.5 s · p95 1.5 s"
    ]


def test_what_has_ended_says_how_long_its_pages_took_and_no_more() -> None:
    view = a_view({"status": "done", "duration_ms": 1500}, speed=Pace(0.5, 0.0, 0.0))

    assert progress_lines(view, PLAIN, 80)[1:] == ["   average 1.5 s · p95 1.5 s"]


def test_where_nothing_is_known_there_is_no_line_on_speed() -> None:
    assert len(progress_lines(a_view({"status": "queued"}), PLAIN, 80)) == 1


def test_a_page_in_flight_shows_its_step_progress_and_time() -> None:
    lines = in_flight_lines(a_view(in_flight(step="titles", progress=50)), PLAIN, 80, NOW, 5)

    assert lines[0] == ""
    assert lines[1].endswith("In flight (1)")
    assert lines[2:] == ["   dist/page.html  titles  [▓▓▓▓▓░░░░░]  50%  5.0 s"]


def test_a_page_that_was_claimed_and_not_begun_begins() -> None:
    lines = in_flight_lines(a_view({"status": "processing"}), PLAIN, 80, NOW, 5)

    assert re.fullmatch(r"   page_0{12}  begins  \[░{10}\]   0%  –", lines[2])


def test_a_stalled_page_is_named_as_such_and_comes_first() -> None:
    view = a_view(in_flight("alive", step="titles"), stalled("lost", 90, step="titles"))
    lines = in_flight_lines(view, PLAIN, 80, NOW, 5)[2:]

    assert [line.split()[0] for line in lines] == ["lost", "alive"]
    assert "stalled 1 min 30 s ago" in lines[0]
    assert "stalled" not in lines[1]


def test_where_few_fit_it_is_the_stalled_that_are_shown() -> None:
    view = a_view(*[in_flight(f"alive-{n}", step="x") for n in range(9)], stalled("lost"))

    assert "lost" in in_flight_lines(view, PLAIN, 80, NOW, 1)[2]


def test_pages_that_have_not_begun_come_after_those_that_have() -> None:
    view = a_view(in_flight("ahead"), in_flight("begun", step="titles"))
    lines = in_flight_lines(view, PLAIN, 80, NOW, 5)[2:]

    assert [line.split()[0] for line in lines] == ["begun", "ahead"]


@pytest.mark.parametrize(
    ("count", "most", "last"),
    [(5, 5, None), (6, 5, "   … and 1 more"), (1200, 5, "   … and 1,195 more")],
)
def test_of_pages_in_flight_the_rest_is_counted(count: int, most: int, last: str | None) -> None:
    lines = in_flight_lines(a_view(*[in_flight()] * count), PLAIN, 80, NOW, most)

    assert len(lines) == 2 + min(count, most) + (last is not None)
    assert (lines[-1] if "more" in lines[-1] else None) == last


def test_nothing_in_flight_is_not_mentioned() -> None:
    assert in_flight_lines(a_view({"status": "done"}), PLAIN, 80, NOW, 5) == []


def test_a_failed_page_shows_its_code_and_error() -> None:
    page = PageInfo("page_0", failed())

    assert failure_lines([page], 1, PLAIN, 80, 5)[2:] == ["   dist/page.html  broken: no heading"]


def test_a_failure_that_says_nothing_of_itself_is_unknown() -> None:
    page = PageInfo("page_0", {"status": "failed"})

    assert failure_lines([page], 1, PLAIN, 80, 5)[2:] == ["   page_0  unknown"]


@pytest.mark.parametrize("count", [1, 5])
def test_few_failures_are_named_page_by_page(count: int) -> None:
    lines = failure_lines([PageInfo("page_0", failed())] * count, count, PLAIN, 80, 5)

    assert lines == ["", f"❌ Failed ({count})", *["   dist/page.html  broken: no heading"] * count]


def test_many_failures_are_in_groups_of_one_kind() -> None:
    kept = [PageInfo(f"page_{n}", {**failed(), "error": f"429 Too Many: {n}"}) for n in range(12)]
    kept += [PageInfo("page_z", failed())]
    lines = failure_lines(kept, 13, PLAIN, 80, 5)

    assert lines[1] == "❌ Failed (13)"
    assert lines[2].startswith("   12 × broken: 429 Too Many: <")
    assert lines[2].endswith(" (may pass)")
    assert lines[3:] == ["    1 × broken: no heading"]


def test_of_few_failures_those_that_are_alike_are_one_line_with_some_of_their_pages() -> None:
    kept = [PageInfo("page_a", failed("a.html"))]
    kept += [
        PageInfo(f"page_{n}", {**failed(f"{n}.html"), "error": f"slow: {n}"}) for n in range(12)
    ]
    lines = failure_lines(kept, 13, PLAIN, 60, 20)

    assert lines[1:] == [
        "❌ Failed (13)",
        "   12 × broken: slow: <n>",
        "       0.html, 1.html, 2.html, 3.html, 4.html, …",
        "   a.html  broken: no heading",
    ]
    assert max(map(width, failure_lines(kept, 13, PLAIN, 40, 20))) <= 40


def test_groups_of_some_of_the_failures_say_so() -> None:
    lines = failure_lines([PageInfo("page_0", failed())] * 50, 2000, PLAIN, 80, 5)

    assert lines[1:] == [
        "❌ Failed (2,000; by kind, of the latest 50)",
        "   50 × broken: no heading",
    ]


def test_a_long_path_leaves_room_for_what_went_wrong() -> None:
    page = PageInfo("page_0", failed("dist/" + "deep/" * 40 + "page.html"))
    line = failure_lines([page], 1, PLAIN, 60, 5)[2]

    assert "…" in line
    assert "deep/page.html  broken: no heading" in line


@pytest.mark.parametrize(
    ("progress", "shown"),
    [(0, "  0%"), (9, "  9%"), (50, " 50%"), (100, "100%"), (-5, "  0%"), (1e9, "100%")],
)
def test_a_small_bar_stays_in_its_frame(progress: float, shown: str) -> None:
    bar = mini_bar(progress, PLAIN)

    assert bar.endswith(shown)
    assert len(bar) == 17


def test_a_page_is_not_at_100_percent_before_it_is() -> None:
    assert mini_bar(99.6, PLAIN).endswith(" 99%")


SUMMARY = st.fixed_dictionaries(
    {name: st.integers(0, 9) | st.none() for name in ("completed", "failed", "pending")}
)
ROW = st.tuples(
    st.just(BATCH), st.sampled_from([status.value for status in BatchStatus]), TIME.map(str),
    st.integers(0, 9), SUMMARY,
)  # fmt: skip


@PROPERTY
@given(st.lists(ROW, max_size=6), st.sampled_from([60, 80, 100]), st.sampled_from([FULL, PLAIN]))
def test_a_table_of_small_batches_fits(
    rows: list[tuple[str, str, str, int, dict[str, int | None]]], columns: int, style: Style
) -> None:
    lines = batch_table(rows, style, columns, NOW)

    assert len(lines) == 1 + len(rows)
    assert max(map(width, lines)) <= columns


def a_row(count: int) -> tuple[str, str, str, int, dict[str, int | None]]:
    """A batch of so many pages that took a while, with the longest name for a status."""
    summary: dict[str, int | None] = {"completed": count, "failed": count, "pending": count}
    return BATCH, "partially_completed", before(3599), count, summary


@pytest.mark.parametrize(
    ("columns", "count"),
    [(40, 100_000), (60, 10), (60, 100_000), (80, 10), (80, 100_000), (100, 100_000)],
)
def test_a_table_of_batches_fits_and_has_their_ids_whole(columns: int, count: int) -> None:
    lines = batch_table([a_row(count)], PLAIN, columns, NOW)

    assert max(map(width, lines)) <= columns
    assert lines[1].split()[1] == BATCH


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (104, "batch status done failed pending cancelled pages created"),
        (100, "batch status done failed pending cancelled created"),
        (80, "batch status done failed pending cancelled"),
        (73, "batch status done failed pending cancelled"),
        (72, "batch status done failed pending"),
        (40, "batch status"),
        (30, "batch status"),
    ],
)
def test_a_narrow_table_of_batches_gives_up_what_matters_least(columns: int, titles: str) -> None:
    id_, status, created, pages, summary = a_row(7)
    row = (id_, status, created, pages, {**summary, "cancelled": 7})
    header, line = batch_table([row], PLAIN, columns, NOW)

    assert header.split() == titles.split()
    assert (f" {BATCH}  " in line) == (columns >= 40)
    assert ("partially completed" in line) == (columns >= 80)


def test_a_table_of_batches_names_its_columns_and_counts() -> None:
    header, line = batch_table([a_row(7)], PLAIN, 100, NOW)

    assert header.split() == ["batch", "status", "done", "failed", "pending", "pages", "created"]
    assert re.search(rf"{BATCH}  partially completed +7 +7 +7 +7  59 min 59 s ago$", line)


def test_values_of_several_lines_stand_under_one_another() -> None:
    assert padded("rate", "1") == "   rate             1"
    assert padded("success rate", "99%").index("99%") == padded("rate", "1").index("1")
