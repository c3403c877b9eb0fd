"""The figures of a batch, from what its pages add up to."""

from __future__ import annotations

from typing import Any

import pytest

from nimbus_tasks.core.lifecycle import Tally
from nimbus_tasks.core.metrics import batch_metrics


def figures(page_count: int, *pages: dict[str, Any]) -> dict[str, Any]:
    """The metrics document of a batch that lists so many pages, of which these have a status."""
    tally = Tally(page_count)
    for page in pages:
        tally.add(page)
    return batch_metrics(tally).to_json()


def done(started: str, completed: str, **fields: Any) -> dict[str, Any]:
    """A page done between two times of one minute, ``mm:ss.fff``."""
    return {"status": "done", "started": at(started), "completed": at(completed), **fields}


def at(clock: str) -> str:
    return f"2026-11-24T12:{clock}Z"


def test_a_batch_where_nothing_has_happened_has_no_figures_and_no_fault() -> None:
    assert figures(3) == {
        "total_pages": 3,
        "success_rate": 0.0,
        "average_time_ms": None,
        "p50_time_ms": None,
        "p95_time_ms": None,
        "total_changes": 0,
        "average_confidence": None,
        "pages_per_minute": None,
        "elapsed_seconds": None,
        "attempts": 0,
        "errors": {},
        "usage": None,
    }


def test_a_batch_of_no_pages_has_no_figures_and_no_fault() -> None:
    assert figures(0)["success_rate"] == 0.0


def test_every_figure_of_a_finished_batch() -> None:
    pages = [
        done("00:00.000", "00:02.000", duration_ms=2000, changes=3, confidence=0.9, attempts=1),
        done("00:01.000", "00:05.000", duration_ms=4000, changes=2, confidence=0.6, attempts=2),
        {
            "status": "failed",
            "started": at("00:02.000"),
            "completed": at("00:12.000"),
            "duration_ms": 10_000,
            "code": "timeout",
            "attempts": 3,
        },
    ]

    assert figures(4, *pages) == {
        "total_pages": 4,
        "success_rate": 50.0,
        "average_time_ms": 3000,
        "p50_time_ms": 2000,
        "p95_time_ms": 4000,
        "total_changes": 5,
        "average_confidence": 0.75,
        "pages_per_minute": 15.0,
        "elapsed_seconds": 12.0,
        "attempts": 6,
        "errors": {"timeout": 1},
        "usage": None,
    }


def test_throughput_is_from_the_first_page_begun_to_the_last_one_ended() -> None:
    measured = figures(2, done("00:30.000", "00:45.000"), done("00:00.000", "00:10.000"))

    assert measured["elapsed_seconds"] == 45.0
    assert measured["pages_per_minute"] == pytest.approx(2.67)


def test_failed_pages_count_for_the_throughput_and_cancelled_ones_do_not() -> None:
    failed = {**done("00:00.000", "00:30.000"), "status": "failed"}
    cancelled = {**done("00:00.000", "05:00.000"), "status": "cancelled"}

    measured = figures(3, done("00:00.000", "00:20.000"), failed, cancelled)

    assert (measured["pages_per_minute"], measured["elapsed_seconds"]) == (4.0, 30.0)


def test_errors_come_with_the_commonest_first() -> None:
    codes = ["rare", "common", "common", "usual", "common", "usual"]
    pages = [{"status": "failed", "code": code} for code in codes]

    assert list(figures(6, *pages)["errors"].items()) == [("common", 3), ("usual", 2), ("rare", 1)]


@pytest.mark.parametrize(
    ("started", "completed"),
    [("00:10.000", "00:10.000"), ("00:10.000", "00:05.000")],
)
def test_pages_that_took_no_time_or_less_have_no_throughput(started: str, completed: str) -> None:
    assert figures(1, done(started, completed))["pages_per_minute"] is None


def test_a_seeds_page_without_a_start_is_done_and_has_no_throughput() -> None:
    measured = figures(1, {"status": "done", "completed": at("00:01.000"), "changes": 4})

    assert (measured["success_rate"], measured["total_changes"]) == (100.0, 4)
    assert (measured["pages_per_minute"], measured["elapsed_seconds"]) == (None, None)


def test_tokens_and_cost_are_summed_over_pages_that_count_them_failed_ones_too() -> None:
    spent = {"tokens_in": 1000, "tokens_out": 100}
    pages = [
        done("00:00.000", "00:02.000", **spent, cost=0.25),
        {"status": "failed", "completed": at("00:03.000"), **spent, "cost": 0.5},
        done("00:00.000", "00:02.000"),
    ]
    assert figures(3, *pages)["usage"] == {
        "pages": 2,
        "tokens_in": 2000,
        "tokens_out": 200,
        "cost": 0.75,
    }
    assert figures(1, {"status": "done", **spent})["usage"]["cost"] is None
