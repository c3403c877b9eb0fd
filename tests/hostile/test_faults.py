"""What hostile inputs have found, one by one: each was a traceback, a hang or a loss."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.command import SETTINGS
from nimbus_tasks.core.clock import LONGEST_LEASE_SECONDS, now_iso, parse_iso
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.keys import (
    batch_key,
    page_id_for,
    page_key,
    queue_prefix,
    status_key,
    status_prefix,
)
from nimbus_tasks.core.leases import LEASELESS_SECONDS, has_lapsed
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.project import Project, save_project
from nimbus_tasks.core.queue_document import DocumentQueueStore
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.core.small_forms import small_forms
from nimbus_tasks.core.wire import MAX_NESTING, NoJsonError, strict_loads
from nimbus_tasks.kv.store import Store
from nimbus_tasks.worker.lookout import Lookout
from tests.factories import upload, work
from tests.hostile import stores
from tests.hostile.program import run

PAGE = "dist/page-000.html"


def page_of(project: Project) -> str:
    return page_id_for(project.project_id, PAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": -1}, {"attempts": 10**30}, {"confidence": float("nan")}, {"changes": 2**53},
        {"updated": "9" * 100}, {"updated": "\x1b[2J"}, {"priority": 99}, {"batch_id": "\x1b[2J"},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_out_of_range_counts_as_absent_also_where_its_like_were_sound(
    wrong: dict[str, object],
) -> None:
    sound = {"status": "done", "batch_id": "b", "updated": now_iso(), "attempts": 1, "changes": 1,
             "confidence": 0.5, "priority": 5}  # fmt: skip
    (first, second, last), _ = small_forms([sound, {**sound, **wrong}, sound])
    assert first == last == sound
    assert second is None or not wrong.keys() & second.keys()


def test_a_time_is_short_and_ascii_so_that_metadata_have_room_for_it() -> None:
    wide = "20" + "👩" * 30
    status = PageStatus.from_value({"status": "done", "updated": wide, "uploaded": wide})
    assert (status.updated, status.uploaded) == ("", None)


@pytest.mark.parametrize("opens", ["[", '{"a":'])
def test_what_could_not_be_written_again_from_deeper_is_not_read(opens: str) -> None:
    closes = {"[": "]", '{"a":': "}"}[opens]
    at_most = opens * MAX_NESTING + "[]" + closes * MAX_NESTING
    strict_loads(at_most)
    with pytest.raises(NoJsonError, match="too deeply"):
        strict_loads(opens + at_most + closes)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_the_first_day_of_all_elsewhere_is_no_time(text: str) -> None:
    assert parse_iso(text) is None
    assert has_lapsed(None, text, now_iso())


def test_a_lease_that_no_worker_can_have_asked_for_is_not_believed() -> None:
    assert LEASELESS_SECONDS < LONGEST_LEASE_SECONDS
    assert has_lapsed("2099-01-01T00:00:00Z", "2026-11-24T08:00:00Z", "2026-11-24T09:00:00Z")
    assert not has_lapsed("2026-11-24T09:00:00Z", "2026-11-24T08:00:00Z", "2026-11-24T08:50:00Z")
    with pytest.raises(UsageError, match="3,600"):
        SETTINGS["worker"]["lease"]("3601", "--lease")


def test_a_worker_waits_neither_for_a_lease_nor_for_an_upload_of_the_far_future(
    project: Project, store: Store, maps: Path
) -> None:
    batch_id = upload(project, store, maps).batch_id
    assert batch_id
    key = status_key(project.project_id, page_of(project))
    claimed = {"started": now_iso(), "lease": "2099-01-01T00:00:00Z", "claim": "x"}
    record = {"status": "processing", "batch_id": batch_id, "updated": now_iso()}
    store.put(key, json.dumps({**record, "processing": claimed}))
    store.put(
        batch_key(project.project_id, "batch_x"),
        json.dumps({"status": "uploading", "created": "2099-01-01T00:00:00Z", "pages": {}}),
    )
    pages = list(list_pages(store, project.project_id))
    assert Lookout(project.project_id, None).what_is_expected(store, pages) is None
    assert work(project, store).done == 9


def test_keys_of_another_shape_are_somebody_elses(
    project: Project, store: Store, maps: Path
) -> None:
    """They are neither counted nor claimed nor deleted, however many stand before ours."""
    upload(project, store, maps)
    theirs = [f"{queue_prefix(project.project_id)}!{number}" for number in range(50)]
    theirs += [f"{status_prefix(project.project_id)}a:{page_of(project)}"]
    for key in theirs:
        store.put(key, "{}")
    assert len(list(list_pages(store, project.project_id))) == 10
    assert work(project, store).done == 10
    verify_batch(project, store, repair=True)
    assert store.get_many(theirs).keys() == set(theirs)


@pytest.mark.parametrize("document", ["", '{"items": [{"page_id": []}, {"page_id": {}}]}'])
def test_a_queue_document_may_hold_anything(
    project: Project, store: Store, maps: Path, document: str
) -> None:
    queue = DocumentQueueStore(store, project.project_id)
    store.put(queue_prefix(project.project_id).rstrip(":"), document)
    upload(project, queue, maps)
    assert work(project, queue).done == 10


@pytest.mark.parametrize("column", ["?", "CAST(? AS TEXT)"])
@pytest.mark.parametrize("metadata", [None, b'{"status": "\xff"}', b'{"status"'])
def test_bytes_in_the_file_that_are_no_text_hide_nobody_elses(
    project: Project, store: Store, maps: Path, column: str, metadata: bytes | None
) -> None:
    upload(project, store, maps)
    key = status_key(project.project_id, page_of(project))
    with closing(sqlite3.connect(project.store_path)) as db:
        db.execute(f"UPDATE vals SET value = {column} WHERE key = ?", (b'{"status": \xff', key))
        db.execute(f"UPDATE keys SET metadata = {column} WHERE key = ?", (metadata, key))
        db.commit()
    work(project, store)
    # The record is made anew from its queue item.
    assert view_batch(project, store).tally.counts["done"] == 10


def test_half_a_surrogate_pair_in_metadata_stops_no_report(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    key = status_key(project.project_id, page_of(project))
    with closing(sqlite3.connect(project.store_path)) as db:
        db.execute(
            "UPDATE keys SET metadata = replace(metadata, 'dist/', '\\ud800') WHERE key = ?", (key,)
        )
        db.commit()
    written = json.loads(write_report(project, store).path.read_text(encoding="utf-8"))
    assert PAGE in [page["path"] for page in written["pages"]]


@pytest.mark.parametrize("field", ["created", "intent", "status"])
def test_a_batch_with_a_megabyte_in_a_field_can_be_cancelled(
    project: Project, store: Store, maps: Path, field: str
) -> None:
    batch_id = upload(project, store, maps).batch_id
    assert batch_id
    key = batch_key(project.project_id, batch_id)
    entry = store.get(key)
    assert entry
    store.put(key, json.dumps({**json.loads(entry.value), field: "\x1b" * 2**20}))
    assert cancel_batch(project, store, batch_id).cancelled == 10


def test_metadata_of_a_page_that_no_store_takes_keep_no_page_from_ending(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    key = page_key(project.project_id, page_of(project))
    with closing(sqlite3.connect(project.store_path)) as db:
        small = json.dumps({"batch_id": "b", "sha256": [], "theirs": "x" * 5000})
        db.execute("UPDATE keys SET metadata = ? WHERE key = ?", (small, key))
        db.commit()
    optimized = {"changes": 1, "optimization": {"title": "better"}}
    assert work(project, store, lambda page, progress: optimized).done == 10
    entry = store.get(key)
    assert entry
    assert (entry.metadata, "optimization" in entry.value) == ({"batch_id": "b"}, True)


def test_a_pages_metadata_may_name_anything_for_its_batch(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    key = page_key(project.project_id, page_of(project))
    entry = store.get(key)
    assert entry
    store.put(key, entry.value, {**(entry.metadata or {}), "batch_id": []})
    assert upload(project, store, maps, changed=True).uploaded == 1


def test_a_change_of_the_far_future_hides_none_of_today(tmp_path: Path) -> None:
    """Who had seen it on Workers KV would have waited for that page until it is over there."""
    world = stores.made(tmp_path / "project", "cloudflare/keys")
    assert world.cloud
    project, key = world.project, status_key(stores.PROJECT, stores.PAGES[0])
    value, metadata = world.rows()[key]
    late = json.dumps({**json.loads(metadata or b"{}"), "updated": "2099-01-01T00:00:00.000000Z"})
    world.write(key, value, late.encode(), as_blob=False)
    with (
        stores.open_memory(world.cloud, tmp_path / "here") as watching,
        stores.open_memory(world.cloud, tmp_path / "there") as working,
    ):
        assert view_batch(project, watching).tally.counts["queued"] == 10
        assert work(project, working).done == 10
        assert view_batch(project, watching).status == "completed"


def test_a_name_of_a_megabyte_is_kept_and_not_shown_whole(project: Project) -> None:
    save_project(replace(project, name="name " * 200_000))
    assert len(run(project.root, "nimbus.init", "--force").out) < 1000
