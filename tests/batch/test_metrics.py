"""Metrics: figures that say no more than is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.metrics import measure_batch, metric_lines
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.core.lifecycle import Tally
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.text import width
from tests.factories import a_map, failing, upload, work, write_map


def tally(done: int, failed: int = 0, cancelled: int = 0) -> Tally:
    """So many pages of each state."""
    made = Tally(done + failed + cancelled)
    for state, count in (("done", done), ("failed", failed), ("cancelled", cancelled)):
        for _ in range(count):
            made.add({"status": state})
    return made


def test_every_page_of_the_batch_counts_in_the_success_rate(
    project: Project, store: Store, maps: Path
) -> None:
    """Those that wait, and those that were cancelled: neither has succeeded."""
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    calls: list[str] = []

    def process(page: Any, progress: Any) -> dict[str, Any]:
        calls.append(page["page_id"])
        if len(calls) == 4:
            with project.open_store() as another:
                cancel_batch(project, another, batch)
        return {}

    work(project, store, process, concurrency=1)
    measured = measure_batch(project, store)
    done = len(calls)
    assert (measured.status, measured.metrics.total_pages) == ("cancelled", 10)
    assert measured.metrics.success_rate == 10.0 * done
    assert 4 <= done < 10


@pytest.mark.parametrize(("done", "failed"), [(99_999, 1), (1, 99_999)])
def test_no_rate_is_rounded_to_all_or_to_nothing(done: int, failed: int) -> None:
    assert 0 < batch_metrics(tally(done, failed)).success_rate < 100


@pytest.mark.parametrize(
    ("done", "failed", "rate"), [(0, 0, 0), (0, 3, 0), (3, 0, 100), (1, 2, 33.33), (2, 1, 66.67)]
)
def test_a_rate_is_in_percent_of_all_pages(done: int, failed: int, rate: float) -> None:
    assert batch_metrics(tally(done, failed)).success_rate == rate


def test_confidence_is_the_mean_of_the_pages_that_state_one(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    stated = iter([1.0, 0.5, 0.0])

    def process(page: Any, progress: Any) -> dict[str, Any]:
        return {"confidence": next(stated, None), "changes": 3}

    work(project, store, process, concurrency=1)
    metrics = measure_batch(project, store).metrics
    assert (metrics.average_confidence, metrics.total_changes) == (0.5, 30)


def test_a_page_that_failed_first_and_is_done_now_counts_as_done_with_two_attempts(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    process = failing("dist/page-001.html")
    work(project, store, process)
    retry_pages(project, store)
    work(project, store, process)
    metrics = measure_batch(project, store).metrics
    assert (metrics.success_rate, metrics.attempts, metrics.errors) == (100.0, 11, {})


def test_errors_are_counted_by_code_the_most_frequent_first(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    codes = iter([KeyError, ValueError, ValueError, KeyError, ValueError, ValueError])

    def process(page: Any, progress: Any) -> dict[str, Any]:
        if (error := next(codes, None)) is not None:
            raise error("no")
        return {}

    work(project, store, process, concurrency=1)
    errors = measure_batch(project, store).metrics.errors
    assert list(errors.items()) == [("ValueError", 4), ("KeyError", 2)]


def test_a_later_batch_does_not_change_the_figures_of_an_ended_one(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-001.html"))
    before = measure_batch(project, store, first)
    upload(project, store, maps)
    assert measure_batch(project, store, first) == before
    work(project, store)
    assert measure_batch(project, store, first) == before


def test_throughput_is_over_the_time_from_the_first_page_to_the_last() -> None:
    made = Tally(3)
    for second in (0, 30, 58):
        made.add(
            {
                "status": "done",
                "started": f"2026-11-24T08:00:{second:02d}Z",
                "completed": f"2026-11-24T08:00:{second + 1:02d}.000Z",
                "duration_ms": 1000 * (second + 1),
            }
        )
    metrics = batch_metrics(made)
    assert metrics.elapsed_seconds == pytest.approx(59.0)
    assert metrics.pages_per_minute == pytest.approx(3.05)
    assert (metrics.timing.p50_ms, metrics.timing.p95_ms) == (31_000, 59_000)


def test_a_batch_of_one_page_has_figures(project: Project, store: Store) -> None:
    write_map(project.folder / "one", "one.json", a_map("one.html"))
    upload(project, store, project.folder / "one")
    work(project, store)
    metrics = measure_batch(project, store).metrics
    assert (metrics.success_rate, metrics.timing.p50_ms) == (100.0, metrics.timing.p95_ms)


def test_figures_that_are_wider_than_the_terminal_go_on_below() -> None:
    failures = Tally(3)
    for code in ("rate_limited", "an_error_with_a_long_code", "another_error"):
        failures.add({"status": "failed", "code": code})
    lines = metric_lines(batch_metrics(failures), 50)
    assert all(width(line) <= 50 for line in lines)
    assert [line[20:] for line in lines[-3:]] == [
        "rate_limited 1,",
        "an_error_with_a_long_code 1,",
        "another_error 1",
    ]
