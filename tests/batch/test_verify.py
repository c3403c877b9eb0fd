"""Verify: each kind of damage is found, named, mended if asked, and then gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify, verify_batch
from nimbus_tasks.core.keys import page_key, queue_prefix, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.batch.damage import (
    DAMAGES,
    PAGE,
    all_values,
    batch_entry,
    forget_a_page,
    lose_a_status_of_another_page,
    lose_queue_items,
    page_of,
    queue_a_stranger,
)
from tests.factories import a_map, upload, upload_cut_off, work, write_map


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
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps)
    verified = verify_batch(project, store, repair=True)
    assert {finding.kind for finding in verified.findings} == {"not_uploaded"}
    assert not verified.ok


def test_looking_without_repair_writes_nothing(project: Project, store: Store, batch: str) -> None:
    for spoil, _ in DAMAGES.values():
        spoil(project, store)
    before = all_values(store)
    assert not verify_batch(project, store).ok
    assert all_values(store) == before


def test_all_damages_at_once_are_mended_at_once(project: Project, store: Store, batch: str) -> None:
    for spoil, _ in DAMAGES.values():
        if spoil is not forget_a_page:  # which is the same page as the one without a status
            spoil(project, store)
    assert verify_batch(project, store, repair=True).ok
    assert verify_batch(project, store).findings == []
    work(project, store)
    assert view_batch(project, store).tally.counts["done"] == 10


def test_the_document_says_what_was_found_and_what_was_mended(
    project: Project, store: Store, batch: str
) -> None:
    lose_queue_items(project, store)
    document = verify_batch(project, store, repair=True).to_json()
    assert (document["ok"], document["repaired"], document["batch_id"]) == (True, 10, batch)
    assert document["findings"][0].keys() == {"kind", "page_id", "path", "detail", "repaired"}
    json.dumps(document)


def test_findings_of_a_kind_are_one_line_where_they_are_many(
    project: Project,
    store: Store,
    batch: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lose_queue_items(project, store)
    queue_a_stranger(project, store)
    monkeypatch.chdir(project.root)
    with pytest.raises(Exit):
        verify(Context())
    title, stray, lost, names, last = capsys.readouterr().out.splitlines()
    assert title == f"⚠️ {batch}: 11 findings"
    assert stray.startswith("   page_stranger: stray_queue_item: a queue item that will not be")
    assert lost == "   10 × not_in_queue: queued, and in no queue"
    assert names.count("dist/page-0") == 5
    assert last == "   --json has them all"


def test_a_page_put_back_into_the_queue_keeps_its_priority_and_its_attempts(
    project: Project, store: Store, batch: str
) -> None:
    from nimbus_tasks.batch.retry import retry_pages
    from tests.factories import failing

    work(project, store, failing(PAGE))
    retry_pages(project, store)
    before = all_values(store)
    lose_queue_items(project, store)
    verify_batch(project, store, repair=True)
    after = all_values(store)
    assert {k: v for k, v in after.items() if k.startswith("queue:")} == {
        k: v for k, v in before.items() if k.startswith("queue:")
    }


def test_the_queue_of_other_batches_is_left_alone(
    project: Project, store: Store, batch: str
) -> None:
    folder = project.folder / "other"
    write_map(folder, "other.json", a_map("other.html"))
    upload(project, store, folder)
    items = [info.key for info in store.scan(queue_prefix(project.project_id))]
    assert verify_batch(project, store, batch, repair=True).findings == []
    assert [info.key for info in store.scan(queue_prefix(project.project_id))] == items


def test_a_page_of_a_writer_that_names_no_place_in_the_queue_is_no_finding(
    project: Project, store: Store, batch: str
) -> None:
    """The wire contract has ``status, batch_id, updated, attempts``; a claim accepts its item."""
    key = status_key(project.project_id, page_of(project))
    entry = store.get(key)
    assert entry is not None
    record = {name: json.loads(entry.value)[name] for name in ("status", "batch_id", "updated")}
    store.put(key, json.dumps({**record, "attempts": 0}))
    assert verify_batch(project, store).findings == []


def test_an_upload_that_was_cut_off_before_its_last_write_is_found(
    project: Project, store: Store, maps: Path
) -> None:
    """All its pages are there, yet its batch would be uploading for ever."""
    upload_cut_off(project, store, maps, before="_close_batch")
    assert view_batch(project, store).status == "uploading"
    assert not verify_batch(project, store).ok


def test_a_page_that_a_writer_without_leases_left_in_flight_is_found(
    project: Project, store: Store, batch: str
) -> None:
    """The wire contract has ``processing {started, current_step, progress}`` and no more."""
    lose_queue_items(project, store)
    old = "2024-09-02T13:45:00.000Z"
    part = {"started": old, "current_step": "ai", "progress": 40}
    record = {"status": "processing", "batch_id": batch, "updated": old, "processing": part}
    store.put(status_key(project.project_id, page_of(project)), json.dumps(record))
    verify_batch(project, store, repair=True)
    work(project, store)
    assert view_batch(project, store).tally.counts["done"] == 10


def test_what_others_wrote_into_a_record_is_there_after_a_repair(
    project: Project, store: Store, batch: str
) -> None:
    key = status_key(project.project_id, page_of(project))
    for place in (key, batch_entry(project, store).key):
        entry = store.get(place)
        assert entry is not None
        value = {**json.loads(entry.value), "theirs": {"a": [1]}}
        store.put(place, json.dumps(value), entry.metadata)
    lose_queue_items(project, store)
    lose_a_status_of_another_page(project, store)
    assert verify_batch(project, store, repair=True).ok
    for place in (key, batch_entry(project, store).key):
        entry = store.get(place)
        assert entry is not None
        assert json.loads(entry.value)["theirs"] == {"a": [1]}
