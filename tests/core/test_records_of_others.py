"""Status records that somebody else wrote: what is read of them, and what is carried along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nimbus_tasks.core.records import PageStatus, read_status
from nimbus_tasks.core.small_forms import small_form
from nimbus_tasks.core.wire import UnreadableRecordError
from nimbus_tasks.kv.store import MAX_VALUE_BYTES, Entry, Store
from tests.core.statuses import BATCH, JS, KEY, NOW, a_status


def test_fields_that_we_do_not_know_are_carried_along_through_every_change() -> None:
    value = {**a_status().to_value(), "owner": "ann", "tags": [1, {"a": None}]}
    status = PageStatus.from_value(value)

    for changed in (
        status,
        status.as_queued(8, NOW),
        status.as_cancelled(NOW),
        replace(status, state="processing", started=NOW),
        replace(status, state="done", completed=NOW),
        replace(status, state="failed", error="broken"),
    ):
        again = changed.to_value()
        assert (again["owner"], again["tags"]) == ("ann", [1, {"a": None}])


def test_a_field_of_others_never_hides_one_of_ours() -> None:
    status = a_status(extra={"status": "done", "batch_id": "other"})

    assert (status.to_value()["status"], status.to_value()["batch_id"]) == ("queued", BATCH)


@pytest.mark.parametrize(
    ("state", "part", "fields"),
    [
        ("done", "result", {"completed": JS, "changes": 1, "confidence": 0.5}),
        ("failed", "error", {"message": "no", "code": "bad", "timestamp": JS}),
        ("processing", "processing", {"started": JS, "current_step": "read", "progress": 5}),
        ("queued", "queued", {"priority": 5, "queued_at": JS}),
    ],
)
def test_fields_that_we_do_not_know_are_carried_along_in_the_parts_of_a_record_too(
    state: str, part: str, fields: dict[str, Any]
) -> None:
    value = {"status": state, "batch_id": BATCH, "updated": JS, part: {**fields, "model": "x-1"}}

    assert PageStatus.from_value(value).to_value()[part]["model"] == "x-1"


def test_the_seeds_queued_page_is_read() -> None:
    status = PageStatus.from_value({"status": "queued", "batch_id": BATCH, "updated": JS})

    assert status == PageStatus("queued", BATCH, JS)
    assert status.queue_key("proj", "page_1") is None


def test_the_seeds_page_in_flight_is_read() -> None:
    value = {
        "status": "processing",
        "batch_id": BATCH,
        "updated": JS,
        "attempts": 1,
        "processing": {"started": JS, "current_step": "rewriting", "progress": 65},
    }

    status = PageStatus.from_value(value)

    assert (status.started, status.step, status.progress) == (JS, "rewriting", 65)
    assert (status.claim, status.lease) == (None, None)
    assert not status.lapsed("2024-09-02T13:55:00.250000Z")
    assert status.lapsed("2024-09-02T13:55:00.251000Z")


def test_the_seeds_done_page_is_read() -> None:
    value = {
        "status": "done",
        "batch_id": BATCH,
        "updated": JS,
        "result": {"completed": JS, "success": True, "changes": 12, "confidence": 0.87},
    }

    status = PageStatus.from_value(value)

    assert (status.completed, status.changes, status.confidence) == (JS, 12, 0.87)
    assert (status.duration_ms, status.error, status.attempts) == (None, None, 0)


def test_the_seeds_failed_page_is_read() -> None:
    value = {
        "status": "failed",
        "batch_id": BATCH,
        "updated": JS,
        "attempts": 2,
        "error": {"message": "Timed out", "code": "TIMEOUT", "timestamp": JS},
    }

    status = PageStatus.from_value(value)

    assert (status.error, status.code, status.completed) == ("Timed out", "TIMEOUT", JS)
    assert status.attempts == 2


@pytest.mark.parametrize("state", [None, "", "exploded", "DONE", 5, ["done"], {"a": 1}, True])
def test_a_state_that_we_do_not_know_is_one_that_somebody_has_to_look_at(state: object) -> None:
    assert PageStatus.from_value({"status": state, "batch_id": BATCH}).state == "failed"


@pytest.mark.parametrize("wrong", [None, [], {}, True, 5])
def test_a_text_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    names = ("batch_id", "updated", "path", "uploaded", "superseded_by")
    parts = {
        "queued": {"queued_at": wrong},
        "processing": {"claim": wrong, "lease": wrong, "current_step": wrong, "started": wrong},
        "error": {"message": wrong, "code": wrong, "timestamp": wrong},
        "result": {"completed": wrong},
    }

    status = PageStatus.from_value({"status": "done", **dict.fromkeys(names, wrong), **parts})

    assert status == PageStatus("done", "", "")


@pytest.mark.parametrize("wrong", [None, [], {}, True, "5", -1, float("nan"), 2**53])
def test_a_count_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    value = {
        "status": "done",
        "attempts": wrong,
        "lapses": wrong,
        "queued": {"priority": wrong},
        "result": {"changes": wrong, "duration_ms": wrong},
    }

    assert PageStatus.from_value(value) == PageStatus("done", "", "")


@pytest.mark.parametrize("wrong", [None, [], {}, True, "0.5", float("nan")])
def test_a_number_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    value = {
        "status": "done",
        "processing": {"progress": wrong},
        "result": {"confidence": wrong},
    }

    assert PageStatus.from_value(value) == PageStatus("done", "", "")


@pytest.mark.parametrize("wrong", [None, [], True, 5, "text", [{"message": "no"}]])
def test_a_part_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    parts = dict.fromkeys(("queued", "processing", "result", "error"), wrong)

    assert PageStatus.from_value({"status": "done", **parts}) == PageStatus("done", "", "")


@pytest.mark.parametrize("value", ["", "[]", "null", '"done"', "{", "[" * 100_000])
def test_a_value_that_is_no_object_is_unreadable(value: str) -> None:
    with pytest.raises(UnreadableRecordError, match="page_0123456789ab"):
        read_status(Entry(KEY, value))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('{"status":"queued","score":NaN}', id="NaN"),
        pytest.param('{"status":"queued","score":1e999}', id="infinity"),
        pytest.param('{"status":"processing","processing":{"progress":1e999}}', id="progress"),
        pytest.param('{"status":"done","result":{"confidence":-Infinity}}', id="confidence"),
        pytest.param('{"status":"queued","note":"\\ud83d"}', id="half a surrogate pair"),
        pytest.param('{"status":"failed","error":{"message":"\\ud83d"}}', id="in an error"),
        pytest.param(
            '{"status":"processing","processing":{"progress":%s}}' % ("9" * 2000), id="digits"
        ),
    ],
)
def test_whatever_can_be_read_can_be_written_again(store: Store, value: str) -> None:
    try:
        status = read_status(Entry(KEY, value))
    except UnreadableRecordError:
        return

    store.put_many([status.entry(KEY)])

    assert store.get(KEY) is not None


@pytest.mark.parametrize(("state", "part"), [("done", "result"), ("failed", "error")])
def test_what_others_write_of_usage_is_carried_along(state: str, part: str) -> None:
    usage = {"tokens_in": 7, "tokens_out": 2, "cost": 0.5, "cached": 3}
    value = {**a_status(state).to_value(), part: {"usage": usage, "code": "c"}}
    status = PageStatus.from_value(value)
    assert (status.tokens_in, status.tokens_out, status.cost) == (7, 2, 0.5)
    assert status.to_value()[part]["usage"] == usage
    assert small_form(status.to_metadata()) == status.to_metadata()
    for foreign in ("much", [1], {"tokens_in": -1, "cost": "dear"}, 0):
        value = {**a_status(state).to_value(), part: {"usage": foreign}}
        status = PageStatus.from_value(value)
        assert (status.tokens_in, status.cost) == (None, None)
        assert "tokens_in" not in status.to_metadata()
        if not isinstance(foreign, dict):
            assert status.to_value()[part]["usage"] == foreign


def test_of_parts_that_do_not_agree_the_outcome_is_believed() -> None:
    later = "2026-11-24T13:00:00.000000Z"
    usage = {"tokens_in": 9, "tokens_out": 1}
    result = {"completed": NOW, "timestamp": later, "usage": usage}
    value = {
        "status": "done",
        "batch_id": BATCH,
        "spent": {"tokens_in": 5, "tokens_out": 5, "cost": 5},
        "result": result,
        "error": {"timestamp": later},
        "processing": {"usage": {"tokens_in": 7, "tokens_out": 7}, "message": "theirs"},
    }
    for parts in (value, dict(reversed(value.items()))):
        status = PageStatus.from_value(parts)
        assert (status.tokens_in, status.tokens_out, status.cost) == (9, 1, None)
        assert status.completed == NOW
    del result["completed"]
    assert PageStatus.from_value(value).completed == later


@pytest.mark.parametrize("place", ["extra", "detail"])
def test_fields_of_others_that_leave_no_room_are_left_out(place: str) -> None:
    """Whoever claims the page writes more than was there, and could not."""
    status = PageStatus("processing", "batch_1", "", claim="c", path="a.html", progress=0)
    theirs, few = ({"theirs": character * (MAX_VALUE_BYTES // 2)} for character in "üx")
    assert read_status(status.changed(**{place: theirs}).entry("status:p:page_a")) == status
    assert getattr(read_status(status.changed(**{place: few}).entry("status:p:page_a")), place)
