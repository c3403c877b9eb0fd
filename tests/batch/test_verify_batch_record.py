"""Batch records that are wrong, damaged or gone: found, mended, and in nobody's way meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.claims import claim_pages
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.lapses import MAX_LAPSES, take_up_lapsed
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload import sending
from tests.batch.damage import batch_entry, page_of
from tests.factories import a_map, upload, work, write_map


def count_too_many(project: Project, store: Store) -> None:
    entry = batch_entry(project, store)
    value = {**json.loads(entry.value), "page_count": 12}
    store.put(entry.key, json.dumps(value), {**(entry.metadata or {}), "page_count": 12})


def mistake_a_page(project: Project, store: Store) -> None:
    entry = batch_entry(project, store)
    value = json.loads(entry.value)
    value["pages"][page_of(project)]["status"] = "failed"
    store.put(entry.key, json.dumps(value), entry.metadata)


def mistake_the_summary(project: Project, store: Store) -> None:
    entry = batch_entry(project, store)
    value = json.loads(entry.value)
    value["summary"]["completed"] = 3
    store.put(entry.key, json.dumps(value), entry.metadata)


def spoil_the_batch(project: Project, store: Store) -> None:
    entry = batch_entry(project, store)
    store.put(entry.key, entry.value[:-1], entry.metadata)


@pytest.mark.parametrize(
    "spoil",
    [
        count_too_many,
        mistake_a_page,
        mistake_the_summary,
        spoil_the_batch,
    ],
)
def test_a_batch_record_of_an_ended_batch_that_is_wrong_is_found_and_mended(
    project: Project, store: Store, batch: str, spoil: Callable[[Project, Store], None]
) -> None:
    work(project, store)
    right = json.loads(batch_entry(project, store).value)
    spoil(project, store)
    assert not verify_batch(project, store).ok
    assert verify_batch(project, store, repair=True).ok
    assert verify_batch(project, store).findings == []
    mended = json.loads(batch_entry(project, store).value)
    states = [{i: page["status"] for i, page in one["pages"].items()} for one in (mended, right)]
    assert states[0] == states[1]
    assert mended["summary"] == right["summary"]


def test_a_page_count_that_is_wrong_does_not_keep_a_batch_open_for_ever(
    project: Project, store: Store, batch: str
) -> None:
    count_too_many(project, store)
    assert not verify_batch(project, store).ok
    verify_batch(project, store, repair=True)
    work(project, store)
    assert view_batch(project, store).status == "completed"


def test_a_batch_record_that_cannot_be_read_does_not_keep_its_pages_from_being_worked_on(
    project: Project, store: Store, batch: str
) -> None:
    spoil_the_batch(project, store)
    assert work(project, store).done == 10


def test_a_batch_record_that_is_gone_does_not_keep_its_pages_from_being_worked_on(
    project: Project, store: Store, batch: str
) -> None:
    store.delete_many([batch_entry(project, store).key])
    assert work(project, store).done == 10


def test_pages_whose_batch_record_is_gone_are_found(
    project: Project, store: Store, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.delete_many([batch_entry(project, store).key])
    monkeypatch.setattr(sending, "new_batch_id", lambda *a: "batch_20990101_000000")
    folder = project.folder / "other"
    write_map(folder, "other.json", a_map("other.html"))
    upload(project, store, folder)
    assert [f.kind for f in verify_batch(project, store).findings] == ["no_batch_record"]
    assert verify_batch(project, store, repair=True).ok
    assert view_batch(project, store, batch).tally.counts["queued"] == 10


def lapse(project: Project, store: Store, times: int) -> None:
    """As many workers vanish, one after another, each with the first page in hand."""
    for number in range(1, times + 1):
        with store.transaction() as tx:
            [claim] = claim_pages(tx, project.project_id, 1, lease_seconds=-5, now=utc_now())
            if number < times:
                take_up_lapsed(tx, project.project_id, [claim.page_id], utc_now())


def test_a_page_that_its_workers_vanish_with_fails_and_the_worker_that_finds_it_says_so(
    project: Project, store: Store
) -> None:
    folder = project.folder / "one"
    write_map(folder, "one.json", a_map("one.html"))
    batch_id = upload(project, store, folder).batch_id
    lapse(project, store, MAX_LAPSES)
    worked = work(project, store)
    assert worked.failed == 1
    assert view_batch(project, store).status == "failed"
    assert worked.batches == {batch_id: "failed"}


def test_the_record_of_a_batch_whose_last_page_is_given_up_says_so(
    project: Project, store: Store
) -> None:
    folder = project.folder / "one"
    write_map(folder, "one.json", a_map("one.html"))
    upload(project, store, folder)
    lapse(project, store, MAX_LAPSES)
    work(project, store)
    assert verify_batch(project, store).findings == []
