"""Cancel of batches that another program wrote, or that were cut off while they were sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.keys import page_id_for, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload import sending
from tests.factories import upload, work


def test_a_page_that_says_it_is_uploaded_is_cancelled_like_one_that_is_queued(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    key = status_key(project.project_id, page_id_for(project.project_id, "dist/page-001.html"))
    store.put(key, json.dumps({"status": "uploaded", "batch_id": batch, "updated": ""}))
    cancel_batch(project, store, "latest")
    view = view_batch(project, store)
    assert (view.status, view.tally.counts["cancelled"]) == ("cancelled", 10)


def test_what_a_cancel_counts_is_what_the_batch_has_afterwards(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "CHUNK_PAGES", 4)

    class CutOff:
        def begin(self, what: str, total: int | None) -> None:
            pass

        def advance(self, steps: int = 1) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        upload(project, store, maps, progress=CutOff())
    cancelled = cancel_batch(project, store, "latest")
    view = view_batch(project, store)
    assert cancelled.cancelled == view.tally.counts["cancelled"]
    assert cancelled.cancelled + cancelled.in_flight + cancelled.finished_before == view.tally.total


def test_a_cancel_of_a_batch_of_which_nothing_was_sent_ends_it(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sending, "_put_pages", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upload(project, store, maps)
    cancel_batch(project, store, "latest")
    assert view_batch(project, store).status == "cancelled"
    assert work(project, store).done == 0


def test_a_cancel_leaves_other_batches_alone(project: Project, store: Store, maps: Path) -> None:
    from tests.factories import a_map, write_map

    first = upload(project, store, maps).batch_id
    write_map(maps / "later", "new.json", a_map("dist/new.html"))
    upload(project, store, maps / "later")
    cancel_batch(project, store, "latest")
    assert view_batch(project, store, first).tally.counts["queued"] == 10
    assert work(project, store).done == 10
