"""The list: every batch in its place, also those whose record is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.list import list_batches, show_batches
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.keys import batch_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.console import Console
from tests.factories import a_map, failing, upload, work, write_map


def one_page(project: Project, store: Store, path: str) -> str:
    """A batch of one page."""
    folder = project.folder / path
    write_map(folder, "page.json", a_map(path))
    batch_id = upload(project, store, folder).batch_id
    assert batch_id is not None
    return batch_id


def test_batches_that_begin_in_one_second_have_ids_of_their_own_and_their_order(
    project: Project, store: Store
) -> None:
    made = [one_page(project, store, f"{number}.html") for number in range(12)]
    assert len(set(made)) == 12
    assert [row.batch_id for row in list_batches(project, store)] == made[::-1]


def test_a_row_says_what_status_says_and_adds_up_whatever_has_happened_to_its_batch(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    upload(project, store, maps)  # takes all pages over
    one_page(project, store, "queued.html")
    cancel_batch(project, store, one_page(project, store, "cancelled.html"))
    retried = one_page(project, store, "retried.html")
    work(project, store, failing("retried.html"), batch_id=retried)
    retry_pages(project, store, retried)
    rows = list_batches(project, store)
    assert len(rows) == 5
    for row in rows:
        view = view_batch(project, store, row.batch_id)
        assert (row.status, row.page_count) == (view.status, view.tally.total)
        assert row.summary == view.tally.summary()
        ended = sum(row.summary[name] or 0 for name in ("completed", "failed", "pending"))
        assert ended + row.cancelled == row.page_count


def test_the_limit_counts_batches_of_the_status_that_is_asked_for(
    project: Project, store: Store
) -> None:
    done = one_page(project, store, "done.html")
    work(project, store)
    waiting = [one_page(project, store, f"{number}.html") for number in range(3)]
    assert [r.batch_id for r in list_batches(project, store, status="completed", limit=1)] == [done]
    newest = [r.batch_id for r in list_batches(project, store, status="queued", limit=2)]
    assert newest == waiting[:0:-1]


@pytest.mark.parametrize("value", ["{damaged", "[]", "null", '{"created": "\\u001b[31mred"}'])
def test_a_record_that_cannot_be_read_hides_no_other_batch(
    project: Project,
    store: Store,
    maps: Path,
    capsys: pytest.CaptureFixture[str],
    value: str,
) -> None:
    batch = upload(project, store, maps).batch_id
    store.put(batch_key(project.project_id, "batch_20260101_000000"), value)
    rows = list_batches(project, store)
    assert [row.batch_id for row in rows] == [batch, "batch_20260101_000000"]
    show_batches(Console(), rows)
    shown = capsys.readouterr().out
    assert "batch_20260101_000000" in shown
    assert "\x1b" not in shown
    json.dumps([row.to_json() for row in rows], allow_nan=False)


def test_other_projects_in_the_same_store_are_not_seen(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    key = batch_key("proj_0123456789ab2", "batch_20260101_000000")
    store.put(key, json.dumps({"pages": {}}))
    assert len(list_batches(project, store)) == 1
