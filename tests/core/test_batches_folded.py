"""Batches: folded from the records of their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core import batches
from nimbus_tasks.core.keys import status_key
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.kv.store import Store
from tests.core.stored_batches import (
    BATCH,
    LATER,
    NOW,
    PROJECT,
    ago,
    counts,
    put_batch,
    put_page,
    put_raw,
    put_superseded,
    undone,
)


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
