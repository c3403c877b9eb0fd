"""Verify: each kind of damage is found, named, mended if asked, and then gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.claims import claim_pages
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.keys import batch_key, page_id_for, page_key, queue_prefix, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import queue_entry, read_status
from nimbus_tasks.kv.store import Store
from tests.factories import upload, work

PAGE = "dist/page-004.html"


def page_of(project: Project) -> str:
    return page_id_for(project.project_id, PAGE)


def lose_queue_items(project: Project, store: Store) -> None:
    store.delete_many([info.key for info in store.scan(queue_prefix(project.project_id))])


def queue_twice(project: Project, store: Store) -> None:
    entry = store.get(status_key(project.project_id, page_of(project)))
    assert entry is not None
    status = replace(read_status(entry), priority=9)
    store.put_many([queue_entry(project.project_id, page_of(project), status)])


def queue_a_stranger(project: Project, store: Store) -> None:
    store.put(f"{queue_prefix(project.project_id)}05:1:page_stranger", "{}")


def let_a_claim_lapse(project: Project, store: Store) -> None:
    with store.transaction() as tx:
        claim_pages(tx, project.project_id, 1, lease_seconds=-5, now=utc_now())


def lose_a_status(project: Project, store: Store) -> None:
    store.delete_many([status_key(project.project_id, page_of(project))])


def spoil_a_status(project: Project, store: Store) -> None:
    store.put(status_key(project.project_id, page_of(project)), "{damaged")


def forget_a_page(project: Project, store: Store) -> None:
    head = batches.find(store, project.project_id, None)
    batch = batches.load(store, project.project_id, head.batch_id)
    pages = {page_id: page for page_id, page in batch.pages.items() if page_id != page_of(project)}
    store.put_many([replace(batch, pages=pages).entry()])


def tell_a_lie(project: Project, store: Store) -> None:
    head = batches.find(store, project.project_id, None)
    key = batch_key(project.project_id, head.batch_id)
    entry = store.get(key)
    assert entry is not None
    value = {**json.loads(entry.value), "status": "completed"}
    store.put(key, json.dumps(value), {**(entry.metadata or {}), "status": "completed"})


DAMAGES: dict[str, tuple[Callable[[Project, Store], None], set[str]]] = {
    "queue items are lost": (lose_queue_items, {"not_in_queue"}),
    "a page is queued twice": (queue_twice, {"stray_queue_item"}),
    "an item of no page": (queue_a_stranger, {"stray_queue_item"}),
    "a claim has lapsed": (let_a_claim_lapse, {"stalled"}),
    "a status is lost": (lose_a_status, {"no_status", "stray_queue_item"}),
    "a status is damaged": (spoil_a_status, {"no_status", "stray_queue_item"}),
    "a page is not listed": (forget_a_page, {"unlisted"}),
    "the record says what is not so": (tell_a_lie, {"drift"}),
}


@pytest.fixture
def batch(project: Project, store: Store, maps: Path) -> str | None:
    return upload(project, store, maps).batch_id


def test_a_sound_batch_has_no_findings(project: Project, store: Store, batch: str) -> None:
    assert verify_batch(project, store).findings == []
    work(project, store)
    verified = verify_batch(project, store)
    assert (verified.ok, verified.status) == (True, "completed")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended_and_the_batch_comes_to_its_end(
    project: Project, store: Store, batch: str, damage: str
) -> None:
    spoil, kinds = DAMAGES[damage]
    spoil(project, store)
    found = verify_batch(project, store)
    assert {finding.kind for finding in found.findings} == kinds
    assert (found.ok, found.repaired) == (False, 0)
    assert verify_batch(project, store).findings == found.findings  # looking changes nothing

    mended = verify_batch(project, store, repair=True)
    assert {finding.kind for finding in mended.findings} == kinds
    assert (mended.ok, mended.repaired) == (True, len(found.findings))
    assert verify_batch(project, store).findings == []
    work(project, store)
    view = view_batch(project, store)
    assert (view.status, view.tally.counts["done"]) == ("completed", 10)


def test_content_that_is_lost_is_named_and_cannot_be_mended(
    project: Project, store: Store, batch: str
) -> None:
    store.delete_many([page_key(project.project_id, page_of(project))])
    verified = verify_batch(project, store, repair=True)
    assert [(f.kind, f.page_id, f.repaired) for f in verified.findings] == [
        ("no_content", page_of(project), False)
    ]
    assert not verified.ok
    work(project, store)
    assert view_batch(project, store).tally.errors == {"missing_page": 1}


def test_an_upload_that_was_cut_off_says_how_to_go_on(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nimbus_tasks.upload import sending

    with monkeypatch.context() as patched:
        patched.setattr(sending, "_put_pages", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upload(project, store, maps)
    verified = verify_batch(project, store, repair=True)
    assert {finding.kind for finding in verified.findings} == {"not_uploaded"}
    assert "--batch=" in verified.findings[0].detail
    assert not verified.ok
