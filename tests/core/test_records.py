"""The status record and the queue item: what is written is read as the same, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.lifecycle import PAGE_STATES, Tally
from nimbus_tasks.core.records import PageStatus, Usage, queue_entry, read_status
from nimbus_tasks.core.small_forms import small_form
from nimbus_tasks.core.wire import UnreadableRecordError, dump_json
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, MAX_VALUE_BYTES, Entry, Store

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)

BATCH = "batch_20240902_134500"
KEY = "status:proj:page_0123456789ab"
NOW = "2026-11-24T12:00:00.000000Z"
#: As JavaScript's toISOString() writes times.
JS = "2024-09-02T13:45:00.250Z"

TIMES = st.datetimes(
    min_value=datetime(2020, 1, 1),
    max_value=datetime(2099, 1, 1),
    timezones=st.just(timezone.utc),
).map(to_iso)
#: Text that is short, long, escaped, or outside the basic plane.
TEXTS = st.builds(
    lambda unit, times: unit * times,
    st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", "\x00", "é", "💥", "\u2028", "a"]),
    st.sampled_from([0, 1, 2, 10, 100, 2000]),
)
#: What a processor's code is in practice.
CODES = st.from_regex(r"[a-z_]{1,40}", fullmatch=True)
COUNTS = st.integers(0, 2**53 - 1)
SHARES = st.floats(0, 1).map(lambda share: round(share, 4))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or nothing."""
    return st.none() | strategy


UNKNOWN_FIELDS = st.dictionaries(
    st.sampled_from(["owner", "tags", "x-note", "ünïcode", "", "result2", "step"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | SHARES | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
        ),
        max_leaves=5,
    ),
    max_size=3,
)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "batch_id": st.just(BATCH),
    "updated": TIMES,
    "attempts": COUNTS,
    "path": maybe(TEXTS),
    "uploaded": maybe(TIMES),
    "lapses": st.integers(0, 3),
    "superseded_by": maybe(st.just("batch_20240903_090000_2")),
    "extra": UNKNOWN_FIELDS,
}
SPENT = {"tokens_in": maybe(COUNTS), "tokens_out": maybe(COUNTS), "cost": maybe(SHARES)}
OF_STATE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "uploaded": {},
    "queued": {"priority": st.integers(1, 10), "queued_at": TIMES},
    "processing": {
        "claim": maybe(st.just("0123456789abcdef")),
        "lease": maybe(TIMES),
        "started": TIMES,
        "step": maybe(TEXTS),
        "progress": st.floats(0, 100) | st.integers(0, 100),
    },
    "done": {
        "started": maybe(TIMES),
        "completed": TIMES,
        "duration_ms": maybe(COUNTS),
        "changes": COUNTS,
        "confidence": maybe(SHARES),
        **SPENT,
    },
    "failed": {
        "started": maybe(TIMES),
        "completed": TIMES,
        "duration_ms": maybe(COUNTS),
        "error": TEXTS,
        "code": maybe(CODES),
        **SPENT,
    },
    "cancelled": {},
}


def statuses(state: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[PageStatus]:
    """Statuses of that state, of any content that this project writes."""
    return st.builds(PageStatus, state=st.just(state), **{**COMMON, **OF_STATE[state], **fields})


ANY_STATUS = st.one_of(*(statuses(state) for state in PAGE_STATES))


def written(status: PageStatus) -> PageStatus:
    """The status as another process reads it."""
    return read_status(Entry(KEY, dump_json(status.to_value())))


def a_status(state: str = "queued", **fields: Any) -> PageStatus:
    """A status, with only what a test is about spelled out."""
    return PageStatus(state, BATCH, NOW, **fields)


def metadata_size(metadata: object) -> int:
    """The bytes that a store counts."""
    return len(json.dumps(metadata, separators=(",", ":")).encode())


# --- round trips ---


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


# --- fields of others ---


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


# --- the small form ---


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


# --- changes of state ---


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


# --- queue items ---


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


@pytest.mark.parametrize("place", ["extra", "detail"])
def test_fields_of_others_that_leave_no_room_are_left_out(place: str) -> None:
    """Whoever claims the page writes more than was there, and could not."""
    status = PageStatus("processing", "batch_1", "", claim="c", path="a.html", progress=0)
    theirs, few = ({"theirs": character * (MAX_VALUE_BYTES // 2)} for character in "üx")
    assert read_status(status.changed(**{place: theirs}).entry("status:p:page_a")) == status
    assert getattr(read_status(status.changed(**{place: few}).entry("status:p:page_a")), place)
