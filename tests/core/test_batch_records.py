"""The batch record: which pages, what was asked for, and a snapshot; ours and the seed's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.batch_records import Batch, BatchHead, head_from_metadata, read_batch
from nimbus_tasks.core.lifecycle import PAGE_STATES, Intent, Tally
from nimbus_tasks.core.wire import UnreadableRecordError
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, Entry, KeyInfo
from tests.core.stored_batches import BATCH, CREATED, JS, PROJECT, a_batch, a_head, in_states

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)

KEY = f"batch:{PROJECT}:{BATCH}"
STATUSES = ("uploading", "queued", "processing", "retrying", "cancelling", "completed", "failed")

#: A record as the seed's upload and worker leave it, written by JSON.stringify and a plain put.
SEEDS_RECORD: dict[str, Any] = {
    "batch_id": BATCH,
    "project_id": PROJECT,
    "created": JS,
    "page_count": 3,
    "status": "partially_completed",
    "pages": {
        "page_aaaaaaaaaaaa": {"status": "done", "uploaded": JS},
        "page_bbbbbbbbbbbb": {"status": "failed", "uploaded": JS},
        "page_cccccccccccc": {"status": "done", "uploaded": JS},
    },
    "summary": {"completed": 2, "failed": 1, "pending": 0, "average_time_ms": 5230},
}

UNKNOWN_FIELDS = st.dictionaries(
    st.sampled_from(["owner", "name", "x-note", "ünïcode", ""]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.integers()),
    max_size=3,
)
PAGES = st.dictionaries(
    st.from_regex(r"page_[0-9a-f]{12}", fullmatch=True),
    st.fixed_dictionaries({"status": st.sampled_from(PAGE_STATES), "uploaded": st.just(JS)}),
    max_size=4,
)
NO_COUNTS: dict[str, int] = {}
COUNTS = st.just(NO_COUNTS) | st.fixed_dictionaries(
    {state: st.integers(0, 100_000) for state in PAGE_STATES}
)
REASONS = st.none() | st.text(max_size=20)


@st.composite
def any_batch(draw: st.DrawFn) -> Batch:
    """A batch of any content that this project writes."""
    pages = draw(PAGES)
    head = BatchHead(
        batch_id=BATCH,
        project_id=PROJECT,
        created=CREATED,
        page_count=len(pages),
        status=draw(st.sampled_from(STATUSES)),
        intent=draw(st.sampled_from(Intent)).value,
        counts=draw(COUNTS),
        average_time_ms=draw(st.none() | st.integers(0, 2**53 - 1)),
        reason=draw(REASONS),
    )
    return Batch(head, pages, draw(UNKNOWN_FIELDS))


def reread(value: object, metadata: dict[str, Any] | None = None) -> Batch:
    """What is read of a record of that value."""
    return read_batch(PROJECT, BATCH, Entry(KEY, json.dumps(value), metadata))


def stored(batch: Batch) -> dict[str, Any]:
    """The value that is written for a batch."""
    value: dict[str, Any] = json.loads(batch.entry().value)
    return value


# --- round trips ---


@PROPERTY
@given(any_batch())
def test_a_batch_is_read_as_it_was_written(batch: Batch) -> None:
    assert read_batch(PROJECT, BATCH, batch.entry()) == batch


@PROPERTY
@given(any_batch())
def test_the_head_is_all_in_the_metadata(batch: Batch) -> None:
    info = KeyInfo(KEY, batch.entry().metadata)

    assert head_from_metadata(PROJECT, BATCH, info) == batch.head


@PROPERTY
@given(any_batch())
def test_what_was_asked_for_survives_a_client_that_drops_the_metadata(batch: Batch) -> None:
    """The seed's clients put the record without metadata, which drops what was there."""
    without = read_batch(PROJECT, BATCH, batch.entry()._replace(metadata=None))

    assert without.pages == batch.pages
    assert without.extra == batch.extra
    for name in ("created", "page_count", "status", "intent", "reason", "average_time_ms"):
        assert getattr(without.head, name) == getattr(batch.head, name)


def test_the_records_fields_are_those_of_the_wire_contract() -> None:
    counts = dict.fromkeys(PAGE_STATES, 0) | {"done": 1, "failed": 1}
    batch = a_batch("page_a", "page_b", status="partially_completed", counts=counts)

    entry = batch.entry()

    assert entry.key == KEY
    assert json.loads(entry.value) == {
        "batch_id": BATCH,
        "project_id": PROJECT,
        "created": CREATED,
        "page_count": 2,
        "status": "partially_completed",
        "intent": "run",
        "pages": {
            "page_a": {"status": "queued", "uploaded": JS},
            "page_b": {"status": "queued", "uploaded": JS},
        },
        "summary": {"completed": 1, "failed": 1, "pending": 0, "average_time_ms": None},
    }
    assert entry.metadata == {
        "status": "partially_completed",
        "created": CREATED,
        "page_count": 2,
        "intent": "run",
        "counts": counts,
    }


# --- records of others ---


def test_the_seeds_record_is_read() -> None:
    batch = reread(SEEDS_RECORD)

    said = dict.fromkeys(PAGE_STATES, 0) | {"done": 2, "failed": 1}
    assert batch.head == a_head(
        created=JS, page_count=3, status="partially_completed", counts=said, average_time_ms=5230
    )
    assert batch.pages == SEEDS_RECORD["pages"]
    assert batch.head.is_final


def test_a_seeds_client_finds_its_fields_where_it_left_them() -> None:
    rewritten = stored(reread(SEEDS_RECORD))

    assert rewritten.items() >= {k: v for k, v in SEEDS_RECORD.items() if k != "summary"}.items()
    assert rewritten["summary"].keys() == SEEDS_RECORD["summary"].keys()


def test_the_seeds_ended_batch_is_summed_up_as_the_seed_did() -> None:
    assert reread(SEEDS_RECORD).head.summary() == SEEDS_RECORD["summary"]


@pytest.mark.parametrize(
    ("status", "intent"),
    [
        ("uploading", "upload"),
        ("queued", "run"),
        ("processing", "run"),
        ("completed", "run"),
        ("failed", "run"),
        ("partially_completed", "run"),
        ("retrying", "retry"),
        ("cancelling", "cancel"),
        ("cancelled", "cancel"),
        ("created", "run"),
    ],
)
def test_what_was_asked_for_a_seeds_batch_follows_from_its_status(status: str, intent: str) -> None:
    assert reread({**SEEDS_RECORD, "status": status}).head.intent == intent


def test_fields_that_we_do_not_know_are_carried_along() -> None:
    value = {**SEEDS_RECORD, "owner": {"name": "ann"}, "tags": [1, None]}
    value["pages"] = {"page_a": {"status": "done", "uploaded": JS, "note": "x"}}

    rewritten = stored(in_states(reread(value), Tally(1), "queued", page_a="queued"))

    assert (rewritten["owner"], rewritten["tags"]) == ({"name": "ann"}, [1, None])
    assert rewritten["pages"]["page_a"] == {"status": "queued", "uploaded": JS, "note": "x"}


def test_fields_that_we_do_not_know_are_carried_along_in_the_summary_too() -> None:
    value = {**SEEDS_RECORD, "summary": {**SEEDS_RECORD["summary"], "cost_usd": 1.25}}

    assert stored(reread(value))["summary"]["cost_usd"] == 1.25


def test_a_field_of_others_never_hides_one_of_ours() -> None:
    batch = Batch(a_head(), {}, {"status": "completed", "batch_id": "other"})

    assert (stored(batch)["status"], stored(batch)["batch_id"]) == ("queued", BATCH)


@pytest.mark.parametrize("wrong", [None, [], {}, True, 5, -1.5])
def test_a_field_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    names = ("created", "status", "intent", "reason", "page_count")

    batch = reread({**dict.fromkeys(names, wrong), "pages": {"page_a": {}}})

    assert batch.head == a_head(created="", status="", page_count=1)


@pytest.mark.parametrize("wrong", [None, [], "text", 5, True])
def test_a_part_of_the_wrong_type_counts_as_absent(wrong: object) -> None:
    batch = reread({"status": "queued", "created": JS, "pages": wrong, "summary": wrong})

    assert (batch.pages, batch.head.page_count, batch.head.average_time_ms) == ({}, 0, None)


def test_a_page_of_the_wrong_type_is_still_a_page_of_the_batch() -> None:
    batch = reread({"pages": {"page_a": None, "page_b": "done", "page_c": ["done"]}})

    assert batch.pages == {"page_a": {}, "page_b": {}, "page_c": {}}


@pytest.mark.parametrize("page_id", ["", "../../etc/passwd", "a:b", "a\nb", "a" * 500, "é", "\x1b"])
def test_a_page_whose_id_may_not_stand_in_a_key_is_not_taken(page_id: str) -> None:
    batch = reread({"pages": {page_id: {"status": "done"}, "page_a": {}}})

    assert (list(batch.pages), batch.head.page_count) == (["page_a"], 1)


@pytest.mark.parametrize("value", ["", "[]", "null", '"done"', "{", "[" * 100_000])
def test_a_value_that_is_no_object_is_unreadable(value: str) -> None:
    with pytest.raises(UnreadableRecordError, match=BATCH):
        read_batch(PROJECT, BATCH, Entry(KEY, value))


def test_the_ids_are_those_of_the_key_whatever_the_value_says() -> None:
    head = reread({**SEEDS_RECORD, "batch_id": "../other", "project_id": "a:b"}).head

    assert (head.batch_id, head.project_id) == (BATCH, PROJECT)


# --- metadata ---


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"status": "queued"},
        {"intent": "run", "created": CREATED},
        {"intent": "run", "page_count": 2},
        {"created": CREATED, "page_count": 2},
        {"intent": None, "created": CREATED, "page_count": 2},
        {"intent": "run", "created": 5, "page_count": 2},
        {"intent": "run", "created": CREATED, "page_count": "2"},
        {"intent": "run", "created": CREATED, "page_count": -2},
    ],
)
def test_metadata_that_is_not_ours_tells_no_head(metadata: dict[str, Any] | None) -> None:
    assert head_from_metadata(PROJECT, BATCH, KeyInfo(KEY, metadata)) is None


@pytest.mark.parametrize("wrong", [None, [], True, "text"])
def test_counts_and_figures_of_the_wrong_type_in_the_metadata_count_as_absent(
    wrong: object,
) -> None:
    metadata = {
        **a_head().metadata(),
        "counts": {"done": wrong, "exploded": 5},
        "average_time_ms": wrong,
    }

    head = head_from_metadata(PROJECT, BATCH, KeyInfo(KEY, metadata))

    assert head is not None
    assert head.counts == dict.fromkeys(PAGE_STATES, 0)
    assert head.average_time_ms is None


@PROPERTY
@given(
    st.builds(
        lambda unit, times: unit * times,
        st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", "\x00", "é", "💥"]),
        st.sampled_from([1, 10, 1000]),
    )
)
def test_the_metadata_fits_whatever_the_reason_is(reason: str) -> None:
    most = 2**53 - 1
    head = a_head(
        status="partially_completed",
        intent="cancel",
        page_count=most,
        counts=dict.fromkeys(PAGE_STATES, most),
        average_time_ms=most,
        reason=reason,
    )

    serialised = json.dumps(head.metadata(), separators=(",", ":"))

    assert len(serialised.encode()) <= MAX_METADATA_BYTES


def test_a_long_reason_is_kept_whole_in_the_record() -> None:
    reason = "because " * 100
    batch = read_batch(PROJECT, BATCH, a_batch("page_a", intent="cancel", reason=reason).entry())

    assert stored(batch)["reason"] == reason
