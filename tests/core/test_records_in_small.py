"""The small form of a status record: it has what a look at a batch needs, and always fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.lifecycle import PAGE_STATES, Tally
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import MAX_METADATA_BYTES
from tests.core.statuses import ANY_STATUS, BATCH, NOW, PROPERTY, a_status, metadata_size, written


def test_the_small_form_of_each_state_has_what_a_look_at_a_batch_needs() -> None:
    common = {
        "batch_id": BATCH,
        "updated": NOW,
        "attempts": 1,
        "path": "a.html",
        "uploaded": NOW,
    }
    base = a_status(attempts=1, path="a.html", uploaded=NOW)

    queued = replace(base, priority=8, queued_at=NOW)
    processing = replace(
        base, state="processing", started=NOW, step="read", progress=40, lease=NOW, claim="c"
    )
    done = replace(
        base, state="done", started=NOW, completed=NOW, duration_ms=5, changes=2, confidence=0.5
    )
    failed = replace(
        base, state="failed", started=NOW, completed=NOW, duration_ms=5, error="no", code="bad"
    )

    assert queued.to_metadata() == {"status": "queued", **common, "priority": 8, "queued_at": NOW}
    assert processing.to_metadata() == {
        "status": "processing",
        **common,
        "started": NOW,
        "step": "read",
        "progress": 40,
        "lease": NOW,
    }
    assert done.to_metadata() == {
        "status": "done",
        **common,
        "started": NOW,
        "completed": NOW,
        "duration_ms": 5,
        "changes": 2,
        "confidence": 0.5,
    }
    assert failed.to_metadata() == {
        "status": "failed",
        **common,
        "started": NOW,
        "completed": NOW,
        "duration_ms": 5,
        "error": "no",
        "code": "bad",
    }
    assert replace(base, state="cancelled").to_metadata() == {"status": "cancelled", **common}


@PROPERTY
@given(st.lists(ANY_STATUS, max_size=5))
def test_the_small_forms_add_up_to_what_the_records_do(found: list[PageStatus]) -> None:
    small, read_again = Tally(5), Tally(5)
    for status in found:
        small.add(status.to_metadata())
        read_again.add(written(status).to_metadata())

    assert small == read_again


@settings(PROPERTY, max_examples=300)
@given(ANY_STATUS)
def test_the_small_form_fits_whatever_path_step_and_error_are(status: PageStatus) -> None:
    assert metadata_size(status.to_metadata()) <= MAX_METADATA_BYTES


@pytest.mark.parametrize("unit", ["💥", "\x00", "é"])
def test_the_small_form_fits_whatever_code_a_processor_gives(unit: str) -> None:
    status = a_status(
        "failed",
        path="p" * 300,
        uploaded=NOW,
        started=NOW,
        completed=NOW,
        duration_ms=5,
        error="e" * 300,
        code=unit * 80,  # which is what a worker keeps of a code
    )

    assert metadata_size(status.to_metadata()) <= MAX_METADATA_BYTES


@pytest.mark.parametrize(
    "state",
    [
        *PAGE_STATES,
    ],
)
def test_the_small_form_fits_where_all_is_as_long_as_it_may_be(state: str) -> None:
    most = 2**53 - 1
    fields: dict[str, dict[str, Any]] = {
        "queued": {"priority": 10, "queued_at": NOW},
        "processing": {"started": NOW, "lease": NOW, "progress": 100 / 3, "step": "s" * 200},
        "done": {"started": NOW, "completed": NOW, "duration_ms": most, "changes": most},
        "failed": {"completed": NOW, "duration_ms": most, "error": "e" * 2000, "code": "c" * 80},
    }
    for state_with_usage in ("done", "failed"):
        fields[state_with_usage] |= {"tokens_in": most, "tokens_out": most, "cost": 100 / 3}
    status = PageStatus(
        state,
        "b" * 128,
        NOW,
        attempts=most,
        path="p" * 2048,
        uploaded=NOW,
        superseded_by="b" * 128,
        **fields.get(state, {}),
    )

    assert metadata_size(status.to_metadata()) <= MAX_METADATA_BYTES


@pytest.mark.parametrize(
    "value",
    [
        {"status": "queued", "batch_id": "b" * 2000},
        {"status": "queued", "updated": "2" * 2000},
        {"status": "queued", "uploaded": "2" * 2000},
        {"status": "queued", "queued": {"queued_at": "2" * 2000}},
        {"status": "processing", "processing": {"started": "2" * 2000}},
        {"status": "processing", "processing": {"lease": "2" * 2000}},
        {"status": "done", "result": {"completed": "2" * 2000}},
        {"status": "failed", "error": {"code": "c" * 2000}},
        {"status": "done", "superseded_by": "b" * 2000},
    ],
    ids=lambda value: "-".join(value),
)
def test_the_small_form_fits_whatever_somebody_else_wrote(value: dict[str, Any]) -> None:
    assert metadata_size(PageStatus.from_value(value).to_metadata()) <= MAX_METADATA_BYTES


def test_a_long_path_keeps_its_beginning_in_the_small_form_and_all_of_it_in_the_record() -> None:
    path = "dist/" + "a" * 2000
    status = a_status(path=path)

    small = status.to_metadata()["path"]
    assert small.endswith("…")
    assert path.startswith(small[:-1])
    assert len(small) > 200
    assert written(status).path == path
