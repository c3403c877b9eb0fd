"""The status record and the queue item: what is written is read as the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.records import PageStatus, Usage, queue_entry
from tests.core.statuses import (
    ANY_STATUS,
    BATCH,
    JS,
    KEY,
    NOW,
    PROPERTY,
    a_status,
    statuses,
    written,
)


@pytest.mark.parametrize("state", PAGE_STATES)
def test_a_status_of_each_state_is_read_as_it_was_written(state: str) -> None:
    @PROPERTY
    @given(statuses(state))
    def holds(status: PageStatus) -> None:
        assert written(status) == status

    holds()


@PROPERTY
@given(ANY_STATUS)
def test_writing_what_was_read_changes_nothing(status: PageStatus) -> None:
    value = status.to_value()

    assert PageStatus.from_value(json.loads(json.dumps(value))).to_value() == value


@PROPERTY
@given(ANY_STATUS)
def test_an_entry_holds_the_record_and_its_small_form(status: PageStatus) -> None:
    entry = status.entry(KEY)

    assert entry.key == KEY
    assert json.loads(entry.value) == status.to_value()
    assert entry.metadata == status.to_metadata()


def test_the_records_fields_are_those_of_the_wire_contract() -> None:
    processing = a_status("processing", started=NOW, step="read", progress=40, attempts=1)
    done = a_status("done", completed=NOW, changes=2, confidence=0.9, duration_ms=12)
    failed = a_status("failed", completed=NOW, error="no title", code="bad_html")

    assert processing.to_value() == {
        "status": "processing",
        "batch_id": BATCH,
        "updated": NOW,
        "attempts": 1,
        "processing": {"started": NOW, "current_step": "read", "progress": 40},
    }
    assert done.to_value()["result"] == {
        "completed": NOW,
        "success": True,
        "changes": 2,
        "confidence": 0.9,
        "duration_ms": 12,
    }
    assert failed.to_value()["error"] == {
        "message": "no title",
        "code": "bad_html",
        "timestamp": NOW,
    }


def test_a_page_that_is_queued_again_keeps_its_history_and_nothing_of_its_last_attempt() -> None:
    failed = a_status(
        "failed",
        attempts=3,
        path="a.html",
        uploaded=NOW,
        lapses=1,
        started=NOW,
        completed=NOW,
        duration_ms=5,
        error="no",
        code="bad",
    )

    queued = failed.as_queued(8, JS)

    assert queued == PageStatus(
        "queued",
        BATCH,
        JS,
        attempts=3,
        path="a.html",
        uploaded=NOW,
        lapses=1,
        priority=8,
        queued_at=JS,
    )
    assert not {"error", "result", "processing"} & queued.to_value().keys()


def test_a_cancelled_page_has_no_claim_and_no_result() -> None:
    claimed = a_status("processing", claim="c", lease=NOW, started=NOW, step="read", progress=5)

    assert claimed.as_cancelled(JS) == PageStatus("cancelled", BATCH, JS)


@pytest.mark.parametrize(
    ("state", "lease", "lapsed"),
    [
        ("processing", "2026-11-24T11:59:59.999999Z", True),
        ("processing", NOW, False),
        ("processing", "2026-11-24T12:00:00.000001Z", False),
        ("processing", None, False),
        ("done", "2020-01-01T00:00:00.000000Z", False),
        ("queued", "2020-01-01T00:00:00.000000Z", False),
    ],
)
def test_a_claim_lapses_when_its_lease_is_over(state: str, lease: str | None, lapsed: bool) -> None:
    assert a_status(state, lease=lease).lapsed(NOW) is lapsed


def test_a_queue_item_has_the_seeds_fields_and_lies_where_its_page_says() -> None:
    status = a_status(priority=8, queued_at=JS, attempts=1)

    entry = queue_entry("proj", "page_1", status)

    assert (
        entry.key == status.queue_key("proj", "page_1") == "queue:proj:02:20240902134500250:page_1"
    )
    assert json.loads(entry.value) == {
        "page_id": "page_1",
        "batch_id": BATCH,
        "priority": 8,
        "queued_at": JS,
        "attempts": 1,
    }
    assert entry.metadata == {"page_id": "page_1", "batch_id": BATCH}


@PROPERTY
@given(statuses("queued"))
def test_every_queued_page_knows_where_its_queue_item_lies(status: PageStatus) -> None:
    assert status.queue_key("proj", "page_1") == queue_entry("proj", "page_1", status).key


@pytest.mark.parametrize("state", [state for state in PAGE_STATES if state != "queued"])
def test_a_page_that_is_not_queued_has_no_queue_item(state: str) -> None:
    assert a_status(state, priority=5, queued_at=NOW).queue_key("proj", "page_1") is None


def test_a_queued_page_that_names_no_priority_has_that_of_a_new_page() -> None:
    assert a_status(queued_at=NOW).queue_key("proj", "page_1") == (
        "queue:proj:05:20261124120000000000:page_1"
    )


def test_what_all_attempts_took_is_added_up_on_the_way() -> None:
    status = a_status("failed", tokens_in=7, tokens_out=2, cost=0.5).as_queued(8, NOW)
    for state in ("queued", "processing", "cancelled"):
        value = status.changed(state=state).to_value()
        assert value["spent"] == {"tokens_in": 7, "tokens_out": 2, "cost": 0.5}
        status = PageStatus.from_value(value)
    status = status.with_usage(Usage(3, 1)).changed(state="done", changes=0)
    assert "spent" not in status.to_value()
    assert status.to_value()["result"]["usage"] == {"tokens_in": 10, "tokens_out": 3, "cost": 0.5}
    assert PageStatus.from_value(status.to_value()) == status
    assert a_status("done").with_usage(None) == a_status("done")
