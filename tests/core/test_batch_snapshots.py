"""The snapshot in a batch record: what each page is in, and all of them together."""

from __future__ import annotations

import pytest

from nimbus_tasks.core.lifecycle import PAGE_STATES, Tally, is_finished
from tests.core.stored_batches import a_batch, a_head, in_states


def test_a_snapshot_says_what_each_page_and_all_of_them_are_in() -> None:
    tally = Tally(3)
    tally.add({"status": "done", "duration_ms": 80})
    tally.add({"status": "failed"})

    batch = in_states(
        a_batch("page_a", "page_b", "page_c"),
        tally,
        "processing",
        page_a="done",
        page_b="failed",
        page_of_another="done",
    )

    assert batch.head.status == "processing"
    assert batch.head.counts == dict.fromkeys(PAGE_STATES, 0) | {
        "uploaded": 1,
        "done": 1,
        "failed": 1,
    }
    assert {page_id: page["status"] for page_id, page in batch.pages.items()} == {
        "page_a": "done",
        "page_b": "failed",
        "page_c": "uploaded",
    }
    assert batch.head.summary() == {
        "completed": 1,
        "failed": 1,
        "pending": 1,
        "average_time_ms": 80,
    }


def test_a_snapshot_without_states_leaves_the_pages_as_they_were() -> None:
    before = a_batch("page_a", "page_b")

    assert before.with_snapshot(Tally(2), "queued").pages == before.pages


def test_a_snapshot_keeps_what_was_asked_for_and_why() -> None:
    before = a_batch("page_a", intent="cancel", reason="wrong folder")

    head = in_states(before, Tally(1), "cancelling").head

    assert (head.intent, head.reason) == ("cancel", "wrong folder")


def test_the_counts_of_a_snapshot_add_up_to_its_page_count_where_a_page_is_not_listed() -> None:
    tally = Tally(1)
    for _ in range(2):
        tally.add({"status": "done"})

    head = in_states(a_batch("page_a"), tally, "completed", page_a="done").head

    assert sum(head.counts.values()) == head.page_count


def test_before_the_first_snapshot_every_page_is_pending() -> None:
    assert a_head(page_count=7).summary() == {
        "completed": 0,
        "failed": 0,
        "pending": 7,
        "average_time_ms": None,
    }


@pytest.mark.parametrize(
    "status",
    [
        "uploading",
        "queued",
        "processing",
        "retrying",
        "cancelling",
        "completed",
        "failed",
        "partially_completed",
        "cancelled",
        "",
        "created",
    ],
)
def test_a_snapshot_is_final_where_its_status_is_an_end(status: str) -> None:
    assert a_head(status=status).is_final == is_finished(status)
