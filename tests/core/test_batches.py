"""Batches: found by what a person types, and folded from the records of their pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.errors import NotFoundError, StoreError, UsageError
from nimbus_tasks.core.keys import batch_key, status_key, superseded_key
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.core.pace import UNKNOWN
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues, Store

PROJECT = "proj_0123456789ab"
BATCH, LATER = "batch_20240902_134500", "batch_20240903_090000"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)


class UndoError(Exception):
    """Raised to undo what an example has written."""


@contextmanager
def undone(store: Store) -> Iterator[KeyValues]:
    """A transaction that leaves nothing behind, for one example of many."""
    with suppress(UndoError), store.transaction() as tx:
        yield tx
        raise UndoError


def ago(seconds: float) -> str:
    """So many seconds before now, as the records write it."""
    return to_iso(NOW - timedelta(seconds=seconds))


def put_batch(store: KeyValues, batch_id: str, *page_ids: str, **fields: Any) -> BatchHead:
    """Store a batch that lists those pages."""
    pages = {page_id: {"status": "uploaded", "uploaded": ago(60)} for page_id in page_ids}
    usual = {"created": ago(60), "page_count": len(pages), "status": "queued", "intent": "run"}
    head = BatchHead(batch_id, PROJECT, **{**usual, **fields})
    store.put_many([Batch(head, pages).entry()])
    return head


def put_page(
    store: KeyValues, page_id: str, state: str, batch_id: str = BATCH, **fields: Any
) -> None:
    """Store the status of a page."""
    status = PageStatus(state, batch_id, ago(0), **fields)
    store.put_many([status.entry(status_key(PROJECT, page_id))])


def put_superseded(store: KeyValues, page_id: str, state: str, batch_id: str = BATCH) -> None:
    """Store what a batch keeps of a page that a later batch took over."""
    status = PageStatus(state, batch_id, ago(0), superseded_by=LATER)
    store.put_many([status.entry(superseded_key(PROJECT, batch_id, page_id))])


def put_raw(store: KeyValues, key: str, value: object, metadata: Any = None) -> None:
    """Store what somebody else might have written."""
    store.put(key, value if isinstance(value, str) else json.dumps(value), metadata)


def counts(**pages: int) -> dict[str, int]:
    """Counts by state, all six of them."""
    return dict.fromkeys(PAGE_STATES, 0) | pages


def found(store: KeyValues, name: str | None) -> str:
    """The id of the batch that a name means."""
    return batches.find(store, PROJECT, name).batch_id


# --- find ---


@pytest.fixture
def three(store: Store) -> Store:
    """A store with three batches, two of them of one second."""
    put_batch(store, BATCH, created="2024-09-02T13:45:00.000000Z")
    put_batch(store, f"{BATCH}_2", created="2024-09-02T13:45:00.500000Z")
    put_batch(store, LATER, created="2024-09-03T09:00:00.000000Z")
    return store


@pytest.mark.parametrize(
    ("name", "batch_id"),
    [
        (BATCH, BATCH),  # which is the beginning of another's id
        (f"{BATCH}_2", f"{BATCH}_2"),
        (LATER, LATER),
        ("090000", LATER),
        ("03_090000", LATER),
        ("134500", BATCH),
        ("20240902_134500", BATCH),
        ("_2", f"{BATCH}_2"),
        ("latest", LATER),
        (None, LATER),
    ],
)
def test_a_batch_is_found_by_its_id_the_end_of_it_or_as_the_latest(
    three: Store, name: str | None, batch_id: str
) -> None:
    assert found(three, name) == batch_id


@pytest.mark.parametrize("name", ["batch_20240904_000000", "batch", "BATCH", "13450", "earliest"])
def test_what_no_batch_ends_with_is_not_found(three: Store, name: str) -> None:
    with pytest.raises(NotFoundError, match=name) as error:
        found(three, name)

    assert error.value.exit_code == 4
    assert error.value.advice is not None
    assert "nimbus.batch.list" in error.value.advice


def test_an_end_that_can_mean_several_is_refused_and_names_them(three: Store) -> None:
    with pytest.raises(UsageError, match="2 batches") as error:
        found(three, "00")

    assert BATCH in error.value.message
    assert LATER in error.value.message
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "name", ["", " ", "../../etc/passwd", "a:b", ":", "latest\n", "*", "a" * 500, "١٢٣", "\x1b[2J"]
)
def test_what_is_no_id_is_refused_before_it_reaches_a_key(three: Store, name: str) -> None:
    with pytest.raises(UsageError, match="batch"):
        found(three, name)


@pytest.mark.parametrize("name", [None, "latest"])
def test_a_project_without_batches_has_no_latest_one(store: Store, name: str | None) -> None:
    with pytest.raises(NotFoundError, match="no batch yet") as error:
        found(store, name)

    assert error.value.exit_code == 4
    assert error.value.advice is not None
    assert "nimbus.upload" in error.value.advice


def test_batches_of_another_project_are_not_found(store: Store) -> None:
    other = replace(put_batch(store, BATCH), project_id=f"{PROJECT}_2", batch_id=LATER)
    store.put_many([Batch(other, {}).entry()])

    assert found(store, None) == BATCH
    with pytest.raises(NotFoundError):
        found(store, LATER)


# --- heads and load ---


def test_the_newest_batch_comes_first(three: Store) -> None:
    heads = batches.heads(three, PROJECT)

    assert [head.batch_id for head in heads] == [LATER, f"{BATCH}_2", BATCH]


def test_newest_is_by_the_time_of_creation_and_not_by_name(store: Store) -> None:
    put_batch(store, "zebra", created="2024-01-01T00:00:00.000000Z")
    put_batch(store, "aardvark", created="2025-01-01T00:00:00.000000Z")

    assert [head.batch_id for head in batches.heads(store, PROJECT)] == ["aardvark", "zebra"]


def test_the_head_of_a_batch_that_has_no_metadata_is_read_from_its_record(store: Store) -> None:
    value = {"created": "2024-09-02T13:45:00.250Z", "status": "processing", "pages": {"page_a": {}}}
    put_raw(store, batch_key(PROJECT, BATCH), value)

    (head,) = batches.heads(store, PROJECT)

    assert (head.batch_id, head.status, head.page_count) == (BATCH, "processing", 1)
    assert batches.find(store, PROJECT, BATCH) == head


@pytest.mark.parametrize("batch_id", ["../../etc", "a b", "é", "a" * 200])
def test_a_batch_whose_id_is_none_is_not_listed(store: Store, batch_id: str) -> None:
    put_batch(store, BATCH)
    put_raw(store, batch_key(PROJECT, batch_id), {})

    assert [head.batch_id for head in batches.heads(store, PROJECT)] == [BATCH]


def test_a_key_of_more_parts_is_no_batch_and_hides_none(store: Store) -> None:
    put_batch(store, BATCH)
    put_raw(store, f"batch:{PROJECT}:{BATCH}:lock", {"holder": "worker-1"})

    assert [head.batch_id for head in batches.heads(store, PROJECT)] == [BATCH]


def test_a_batch_that_cannot_be_read_does_not_hide_the_others(store: Store) -> None:
    put_batch(store, BATCH)
    put_raw(store, batch_key(PROJECT, LATER), "{damaged")

    assert BATCH in [head.batch_id for head in batches.heads(store, PROJECT)]


def test_a_batch_is_loaded_with_its_pages(store: Store) -> None:
    put_batch(store, BATCH, "page_a", "page_b")

    assert list(batches.load(store, PROJECT, BATCH).pages) == ["page_a", "page_b"]


def test_loading_a_batch_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match=BATCH):
        batches.load(store, PROJECT, BATCH)


@pytest.mark.parametrize("value", ["{damaged", "[]", "null", ""])
def test_loading_a_damaged_batch_names_it(store: Store, value: str) -> None:
    put_raw(store, batch_key(PROJECT, BATCH), value)

    with pytest.raises(StoreError, match=BATCH) as error:
        batches.load(store, PROJECT, BATCH)
    assert error.value.exit_code == 5


# --- fold ---


def test_a_batch_is_folded_from_the_records_of_its_pages_and_no_others(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c", "page_d")
    put_batch(store, LATER, "page_e")
    put_page(store, "page_a", "done", changes=2)
    put_page(store, "page_b", "failed")
    put_page(store, "page_c", "processing")
    put_page(store, "page_e", "done", LATER, changes=50)

    tally = batches.fold(store, head)

    assert tally.counts == counts(done=1, failed=1, processing=1, uploaded=1)
    assert tally.total_changes == 2


def test_what_the_batch_record_says_of_an_open_batch_is_not_believed(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", status="processing", counts=counts(done=1))
    put_page(store, "page_a", "queued")

    assert batches.fold(store, head).counts == counts(queued=1)
    assert batches.look(store, head, NOW).status == "queued"


def test_pages_that_a_later_batch_took_over_count_as_they_were_then(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c")
    later = put_batch(store, LATER, "page_b", "page_c")
    put_page(store, "page_a", "done")
    put_superseded(store, "page_b", "done")
    put_superseded(store, "page_c", "cancelled")
    put_page(store, "page_b", "queued", LATER)
    put_page(store, "page_c", "processing", LATER)

    assert batches.fold(store, head).counts == counts(done=2, cancelled=1)
    assert batches.fold(store, later).counts == counts(queued=1, processing=1)


def test_pages_taken_over_from_a_batch_whose_id_begins_alike_are_not_mixed_up(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a")
    put_superseded(store, "page_b", "done", f"{BATCH}_2")

    assert batches.fold(store, head).counts == counts(uploaded=1)


def test_a_page_without_metadata_is_read_from_its_record(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a")
    value = {"status": "done", "batch_id": BATCH, "result": {"changes": 7, "confidence": 0.5}}
    put_raw(store, status_key(PROJECT, "page_a"), value)

    tally = batches.fold(store, head)

    assert tally.counts == counts(done=1)
    assert (tally.total_changes, tally.average_confidence) == (7, 0.5)


@pytest.mark.parametrize(
    "metadata", [{}, {"status": "done"}, {"batch_id": BATCH}, {"status": "odd", "batch_id": BATCH}]
)
def test_a_page_whose_metadata_is_not_ours_is_read_from_its_record(
    store: Store, metadata: Mapping[str, Any]
) -> None:
    head = put_batch(store, BATCH, "page_a")
    value = {"status": "failed", "batch_id": BATCH, "error": {"message": "no", "code": "bad"}}
    put_raw(store, status_key(PROJECT, "page_a"), value, metadata)

    assert batches.fold(store, head).errors == {"bad": 1}


@pytest.mark.parametrize("value", ["", "{", "[]", "null", "5"])
def test_a_page_that_cannot_be_read_stays_open_and_hides_no_other(store: Store, value: str) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    put_raw(store, status_key(PROJECT, "page_a"), value)
    put_page(store, "page_b", "done")

    view = batches.look(store, head, NOW)

    assert view.tally.counts == counts(uploaded=1, done=1)
    assert not view.is_finished


@pytest.mark.parametrize(
    ("state", "field", "wrong"),
    [
        ("done", "attempts", None),
        ("done", "attempts", "2"),
        ("done", "updated", 1_725_284_700_000),
        ("done", "started", 5),
        ("done", "completed", 5),
        ("done", "duration_ms", "fast"),
        ("done", "changes", "many"),
        ("done", "confidence", "high"),
        ("failed", "code", ["bad"]),
        ("failed", "completed", 5),
        ("processing", "lease", 5),
        ("processing", "started", 5),
        ("processing", "batch_id", ["a"]),
    ],
)
def test_a_field_of_the_wrong_type_in_the_metadata_counts_as_absent(
    store: Store, state: str, field: str, wrong: object
) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    page = {"status": state, "batch_id": BATCH}
    put_page(
        store, "page_b", state, started=ago(9), completed=ago(5), lease=ago(1), error="no", code="a"
    )
    put_raw(store, status_key(PROJECT, "page_a"), page, {**page, field: wrong})

    view = batches.look(store, head, NOW)

    assert view.tally.counts == counts(**{state: 2})
    assert batch_metrics(view.tally).total_pages == 2
    assert batches.fold_all(store, PROJECT, [head])[BATCH].counts == counts(**{state: 2})


# --- fold_all ---


def test_all_open_batches_are_folded_at_once(store: Store) -> None:
    heads = [put_batch(store, BATCH, "page_a", "page_b"), put_batch(store, LATER, "page_c")]
    put_page(store, "page_a", "done")
    put_page(store, "page_c", "failed", LATER)

    tallies = batches.fold_all(store, PROJECT, heads)

    assert tallies[BATCH].counts == counts(done=1, uploaded=1)
    assert tallies[LATER].counts == counts(failed=1)


def test_the_snapshot_of_an_ended_batch_is_trusted_and_not_folded_again(store: Store) -> None:
    ended = put_batch(store, BATCH, "page_a", status="completed", counts=counts(done=1))
    still_open = put_batch(store, LATER, "page_b")
    put_page(store, "page_b", "queued", LATER)

    assert batches.fold_all(store, PROJECT, [ended, still_open]).keys() == {LATER}
    assert batches.fold_all(store, PROJECT, [ended]) == {}


STATUSES = st.tuples(st.sampled_from([BATCH, LATER, ""]), st.sampled_from(PAGE_STATES))


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(STATUSES, max_size=8), st.lists(STATUSES, max_size=3), st.booleans(), st.integers(0, 9)
)
def test_folded_at_once_or_one_by_one_batches_add_up_to_the_same(
    store: Store,
    pages: list[tuple[str, str]],
    taken_over: list[tuple[str, str]],
    with_metadata: bool,
    listed: int,
) -> None:
    with undone(store) as tx:
        heads = [
            put_batch(tx, BATCH, *(f"page_{number}" for number in range(listed))),
            put_batch(tx, LATER, "page_0"),
        ]
        for number, (batch_id, state) in enumerate(pages):
            put_page(tx, f"page_{number}", state, batch_id, completed=ago(number))
        for number, (batch_id, state) in enumerate(taken_over):
            put_superseded(tx, f"page_9{number}", state, batch_id)
        if not with_metadata:
            for info in list(tx.scan("status:")):
                entry = tx.get(info.key)
                assert entry is not None
                tx.put_many([entry._replace(metadata=None)])

        at_once = batches.fold_all(tx, PROJECT, heads)

        assert at_once == {head.batch_id: batches.fold(tx, head) for head in heads}


# --- look ---


def test_a_look_at_a_batch_has_the_documented_json(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done", duration_ms=40)

    assert batches.look(store, head, NOW).to_json() == {
        "batch_id": BATCH,
        "project_id": PROJECT,
        "status": "processing",
        "created": head.created,
        "page_count": 2,
        "counts": counts(done=1, uploaded=1),
        "summary": {"completed": 1, "failed": 0, "pending": 1, "average_time_ms": 40},
        "finished": False,
        "pages_per_second": None,
        "seconds_left": [None, None],
        "stalled": 0,
    }


def test_a_look_shows_the_pages_in_flight_the_oldest_first(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c")
    put_page(store, "page_a", "processing", started=ago(5), step="read", progress=20)
    put_page(store, "page_b", "processing", started=ago(50))
    put_page(store, "page_c", "processing")

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.in_flight] == ["page_c", "page_b", "page_a"]
    assert view.in_flight[-1].status["step"] == "read"


def test_a_page_whose_lease_is_over_is_stalled_and_still_in_flight(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c")
    put_page(store, "page_a", "processing", lease=ago(1))
    put_page(store, "page_b", "processing", lease=ago(-1))
    put_page(store, "page_c", "processing")  # the seed's: it names no lease

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.stalled] == ["page_a"]
    assert len(view.in_flight) == 3
    assert view.to_json()["stalled"] == 1


def test_the_pace_is_known_only_while_somebody_is_at_work(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done", started=ago(20), completed=ago(10))
    put_page(store, "page_b", "processing", lease=ago(-1))

    assert batches.look(store, head, NOW).pace != UNKNOWN
    put_page(store, "page_b", "processing", lease=ago(1))
    assert batches.look(store, head, NOW).pace == UNKNOWN
    put_page(store, "page_b", "queued")
    assert batches.look(store, head, NOW).pace == UNKNOWN


def test_a_look_shows_the_failures_the_latest_first(store: Store) -> None:
    head = put_batch(store, BATCH, *(f"page_{name}" for name in "abcd"))
    put_page(store, "page_a", "failed", completed=ago(30), error="old")
    put_page(store, "page_b", "failed", completed=ago(10), error="new", path="b.html")
    put_page(store, "page_c", "failed", completed=ago(20), error="middle")
    put_page(store, "page_d", "failed")

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.failures] == ["page_b", "page_c", "page_a", "page_d"]
    assert [page.name for page in view.failures[:2]] == ["b.html", "page_c"]


def test_a_look_keeps_the_latest_failures_and_counts_them_all(store: Store) -> None:
    failed = batches.FAILURES_KEPT + 30
    head = put_batch(store, BATCH, *(f"page_{number}" for number in range(failed)))
    # The listing meets them neither from the oldest nor from the newest on.
    with store.transaction() as tx:
        for number in range(failed):
            age = number * 37 % failed
            put_page(tx, f"page_{number}", "failed", completed=ago(age), path=f"{age:03d}")

    view = batches.look(store, head, NOW)

    assert [page.name for page in view.failures] == [
        f"{age:03d}" for age in range(batches.FAILURES_KEPT)
    ]
    assert view.tally.counts == counts(failed=failed)


@pytest.mark.parametrize(
    ("intent", "states", "status", "finished"),
    [
        ("run", ["done", "done"], "completed", True),
        ("run", ["done", "failed"], "partially_completed", True),
        ("run", ["failed", "failed"], "failed", True),
        ("run", ["done"], "processing", False),
        ("retry", ["done", "queued"], "retrying", False),
        ("cancel", ["processing", "cancelled"], "cancelling", False),
        ("cancel", ["done", "cancelled"], "cancelled", True),
        ("upload", ["done", "done"], "uploading", False),
    ],
)
def test_the_status_of_a_look_follows_from_intent_and_pages(
    store: Store, intent: str, states: list[str], status: str, finished: bool
) -> None:
    head = put_batch(store, BATCH, "page_0", "page_1", intent=intent)
    for number, state in enumerate(states):
        put_page(store, f"page_{number}", state)

    view = batches.look(store, head, NOW)

    assert (view.status, view.is_finished) == (status, finished)


# --- save ---


def test_saving_rebuilds_what_the_record_says_and_returns_the_status(store: Store) -> None:
    put_batch(store, BATCH, "page_a", "page_b", "page_c", status="queued")
    put_page(store, "page_a", "done", duration_ms=40)
    put_page(store, "page_b", "failed")
    put_superseded(store, "page_c", "cancelled")

    assert batches.save_snapshot(store, PROJECT, BATCH) == "partially_completed"

    batch = batches.load(store, PROJECT, BATCH)
    assert batch.head.counts == counts(done=1, failed=1, cancelled=1)
    assert (batch.head.status, batch.head.average_time_ms) == ("partially_completed", 40)
    assert [page["status"] for page in batch.pages.values()] == ["done", "failed", "cancelled"]
    assert batches.heads(store, PROJECT) == [batch.head]


def test_saving_twice_changes_nothing(store: Store) -> None:
    put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done")
    batches.save_snapshot(store, PROJECT, BATCH)
    once = store.get(batch_key(PROJECT, BATCH))

    batches.save_snapshot(store, PROJECT, BATCH)

    assert store.get(batch_key(PROJECT, BATCH)) == once


def test_saving_a_batch_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        batches.save_snapshot(store, PROJECT, BATCH)


def test_the_pages_there_are_those_with_a_status_listed_or_not(store: Store) -> None:
    put_batch(store, BATCH, "page_listed", "page_announced", "page_taken_over")
    put_page(store, "page_listed", "queued")
    put_page(store, "page_unlisted", "queued", uploaded=ago(5))
    put_superseded(store, "page_taken_over", "done")

    batch = batches.with_pages_there(store, batches.load(store, PROJECT, BATCH))

    assert batch.pages.keys() == {"page_listed", "page_unlisted", "page_taken_over"}
    assert batch.pages["page_listed"] == {"status": "uploaded", "uploaded": ago(60)}
    assert batch.pages["page_unlisted"]["uploaded"] == ago(5)
    assert batch.head.page_count == 3


@pytest.mark.parametrize("lag", [0.0, 60.0])
def test_where_reads_lag_nobody_writes_that_a_batch_is_being_uploaded(
    store: Store, lag: float
) -> None:
    """It may have been read before its upload ended; written again, it would be for ever."""
    put_batch(store, BATCH, "page_1", intent="upload")
    put_page(store, "page_1", "processing")
    before = store.get(batch_key(PROJECT, BATCH))
    store.lag_seconds = lag
    assert batches.save_snapshot(store, PROJECT, BATCH) == "uploading"
    assert (store.get(batch_key(PROJECT, BATCH)) == before) == bool(lag)


@pytest.mark.parametrize("lag", [0.0, 60.0])
@pytest.mark.parametrize("save", ["save_snapshot", "save_begun"])
@pytest.mark.parametrize(
    ("intent", "state"), [("run", "cancelled"), ("cancel", "queued"), ("cancel", "cancelled")]
)
def test_where_reads_lag_a_record_of_before_a_cancel_or_a_retry_is_not_written_again(
    store: Store, lag: float, save: str, intent: str, state: str
) -> None:
    """The pages tell of what the record does not: it may be an old one."""
    put_batch(store, BATCH, "page_1", "page_2", intent=intent, status="queued")
    for page_id, its in (("page_1", state), ("page_2", "processing")):
        status = PageStatus(its, BATCH, to_iso(datetime.now(timezone.utc)))
        store.put_many([status.entry(status_key(PROJECT, page_id))])
    before = store.get(batch_key(PROJECT, BATCH))
    store.lag_seconds = lag
    if save == "save_snapshot" or not batches.save_begun(store, PROJECT, BATCH, ["page_2"]):
        batches.save_snapshot(store, PROJECT, BATCH)
    is_contrary = (intent, state) != ("cancel", "cancelled")
    assert (store.get(batch_key(PROJECT, BATCH)) == before) == (bool(lag) and is_contrary)


def test_where_reads_lag_pages_that_were_cancelled_long_ago_hold_nothing_up(store: Store) -> None:
    put_batch(store, BATCH, "page_1", status="processing")
    status = PageStatus("cancelled", BATCH, to_iso(datetime.now(timezone.utc) - timedelta(hours=1)))
    store.put_many([status.entry(status_key(PROJECT, "page_1"))])
    store.lag_seconds = 60.0
    assert batches.save_snapshot(store, PROJECT, BATCH) == "cancelled"
    assert batches.load(store, PROJECT, BATCH).head.status == "cancelled"
