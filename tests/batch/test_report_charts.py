"""Charts: every page is in a bar, and the bars are as high as their figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_tasks.batch.report import charts
from nimbus_tasks.batch.report.charts import Chart

MOMENT = 1_800_000_000.0


def bars(chart: Chart) -> list[list[tuple[str, float, float]]]:
    """For each bar its parts: class, y, height."""
    drawing = ElementTree.fromstring(chart.svg)
    return [
        [(r.attrib["class"], float(r.attrib["y"]), float(r.attrib["height"])) for r in g]
        for g in ([rect for rect in bar if rect.tag == "rect"] for bar in drawing)
    ]


def total(chart: Chart) -> int:
    return sum(int(cell.replace(",", "")) for row in chart.table for cell in row[1:])


def test_throughput_stacks_failed_on_done() -> None:
    done, failed = [MOMENT + 1] * 3 + [MOMENT + 47], [MOMENT + 1]
    chart = charts.throughput(done, failed, MOMENT)
    assert chart.summary == "5 pages ended within 47 s; at most 4 in 1.0 s."
    assert chart.table == [("1.0 s to 2.0 s", "3", "1"), ("47 s to 48 s", "1", "0")]
    assert bars(chart) == [
        [("fill-done", 25, 75), ("fill-failed", 0, 25)],
        [("fill-done", 75, 25)],
    ]
    assert chart.ticks == ("start", "24 s", "48 s")


def test_a_batch_that_took_no_time_has_one_bar() -> None:
    chart = charts.throughput([MOMENT] * 4, [], MOMENT)
    assert (len(bars(chart)), total(chart)) == (1, 4)
    assert chart.ticks == ("start", "4.0 s", "8.0 s")  # and room for seven more
    assert ElementTree.fromstring(chart.svg).attrib["viewBox"] == "0 0 8 100"


def test_a_start_after_the_first_ending_is_of_another_clock() -> None:
    chart = charts.throughput([MOMENT, MOMENT + 10], [], MOMENT + 5)
    assert chart.summary.startswith("2 pages ended within 10 s")


def test_durations_have_a_last_bar_for_all_that_took_long() -> None:
    chart = charts.durations([100.0] * 990 + [200.0] * 9 + [9_000.0])
    assert total(chart) == 1000
    assert chart.summary == (
        "Of those done half took up to 100 ms, 95 of 100 up to 100 ms, the longest 9.0 s."
    )
    assert chart.table[-1][0].endswith("or more")
    assert chart.ticks[-1].endswith("and more")


def test_durations_of_nothing_are_durations() -> None:
    assert charts.durations([0.0, 0.0]).table == [("0 ms to 1 ms", "2")]


def test_a_confidence_is_in_the_bar_that_begins_with_it() -> None:
    chart = charts.confidences([0.0, 0.3, 0.35, 0.99, 1.0])
    assert [row[0] for row in chart.table] == [
        "0.00 to 0.05",
        "0.30 to 0.35",
        "0.35 to 0.40",
        "0.95 to 1.00",
    ]
    assert chart.table[-1][1] == "2"


finite = st.floats(0, 10**7, allow_nan=False)


@given(st.lists(finite, min_size=1), st.lists(finite), st.none() | finite)
def test_no_page_is_lost_in_a_chart(
    first: list[float], second: list[float], start: float | None
) -> None:
    for chart in (
        charts.throughput(first, second, start),
        charts.throughput(second, first, start),
    ):
        assert total(chart) == len(first) + len(second)
        assert 1 <= len(bars(chart)) <= 60
        assert all(y >= 0 and y + height <= 100.1 for bar in bars(chart) for _, y, height in bar)
    assert total(charts.durations(first)) == len(first)
    assert total(charts.confidences([value / 10**7 for value in first])) == len(first)


@pytest.mark.parametrize(
    ("about", "step"), [(0, 0), (0.013, 0.02), (1, 1), (1.1, 2), (2.1, 5), (5.1, 10), (700, 1000)]
)
def test_steps_are_round_numbers(about: float, step: float) -> None:
    assert charts.nice_step(about) == pytest.approx(step)


@pytest.mark.parametrize(
    ("about", "step"), [(3, 5), (11, 15), (31, 60), (100, 120), (4000, 7200), (90_000, 172_800)]
)
def test_steps_of_time_are_what_a_clock_has(about: float, step: float) -> None:
    assert charts.time_step(about) == pytest.approx(step)


def test_the_bar_of_states_is_as_wide_as_the_batch_and_hides_nobody() -> None:
    drawing = ElementTree.fromstring(
        charts.state_bar([("done", 99_998), ("failed", 1), ("cancelled", 0), ("queued", 1)])
    )
    widths = {r.attrib["class"]: float(r.attrib["width"]) for r in drawing.iter("rect")}
    assert widths.keys() == {"fill-done", "fill-failed", "fill-queued"}
    assert sum(widths.values()) == pytest.approx(1000, abs=1)
    assert min(widths.values()) > 3
    assert drawing.attrib["aria-label"] == "99,998 done, 1 failed, 1 queued"


def test_a_batch_without_pages_has_an_empty_bar() -> None:
    assert "rect" not in charts.state_bar([("done", 0)])


def test_a_share_is_never_wider_than_its_bar() -> None:
    widths = [
        re.findall(r'rect width="([\d.]+)"', charts.share_bar(share)) for share in (-1, 0.5, 7)
    ]
    assert widths == [["0.0"], ["50.0"], ["100.0"]]
