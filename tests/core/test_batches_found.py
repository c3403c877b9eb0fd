"""Batches: found by what a person types, listed, and loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch
from nimbus_tasks.core.errors import NotFoundError, StoreError, UsageError
from nimbus_tasks.core.keys import batch_key
from nimbus_tasks.kv.store import KeyValues, Store
from tests.core.stored_batches import BATCH, LATER, PROJECT, put_batch, put_raw


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
