"""Status of records that other programs write: they carry along what they do not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.metrics import measure_batch
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.keys import page_id_for, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import upload, work


def rewrite(project: Project, store: Store, path: str, **fields: Any) -> None:
    """What a Worker in JavaScript does to a page: it takes the metadata that is there, carries
    along what it does not know, and puts its own fields in."""
    entry = store.get(status_key(project.project_id, page_id_for(project.project_id, path)))
    assert entry is not None
    value = {**json.loads(entry.value), "status": fields.get("status")}
    store.put(entry.key, json.dumps(value), {**(entry.metadata or {}), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "done", "confidence": "0.9"},
        {"status": "done", "changes": "3"},
        {"status": "done", "duration_ms": "12"},
        {"status": "failed", "code": ["broken"]},
        {"status": "done", "attempts": "1"},
        {"status": "done", "completed": 1_700_000_000, "started": 1_600_000_000},
    ],
    ids=str,
)
def test_fields_of_the_wrong_type_count_as_absent_in_metadata_of_ours_that_others_changed(
    project: Project, store: Store, maps: Path, fields: dict[str, Any]
) -> None:
    upload(project, store, maps)
    work(project, store)
    rewrite(project, store, "dist/page-001.html", **fields)
    assert sum(view_batch(project, store).tally.counts.values()) == 10
    json.dumps(measure_batch(project, store).to_json(), allow_nan=False)


def test_a_batch_that_the_seed_wrote_is_read_mended_and_worked_on(
    project: Project, store: Store
) -> None:
    """Records without metadata, places or attempts, as ``seed/batch-management.md`` has them."""
    batch, when = "batch_20240902_134500", "2024-09-02T13:45:00.000Z"
    key = project.project_id
    listed = {f"page_{name}": {"status": "queued", "uploaded": when} for name in "ab"}
    summary = {"completed": 0, "failed": 0, "pending": 2}
    record = {"batch_id": batch, "project_id": key, "created": when, "page_count": 2,
              "status": "queued", "pages": listed, "summary": summary}  # fmt: skip
    store.put(f"batch:{key}:{batch}", json.dumps(record))
    for page in listed:
        content = {"page_id": page, "source_path": f"{page}.html", "extraction": {}}
        store.put(f"page:{key}:{page}", json.dumps(content))
        status = {"status": "queued", "batch_id": batch, "updated": when}
        store.put(f"status:{key}:{page}", json.dumps(status))
    assert view_batch(project, store).to_json()["summary"]["pending"] == 2
    mended = verify_batch(project, store, repair=True)
    assert {finding.kind for finding in mended.findings} == {"not_in_queue"}
    work(project, store)
    assert view_batch(project, store).status == "completed"


def test_a_damaged_record_whose_metadata_is_sound_is_mended_too(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    entry = store.get(
        status_key(project.project_id, page_id_for(project.project_id, "dist/page-004.html"))
    )
    assert entry is not None
    store.put(entry.key, "{damaged", entry.metadata)
    verify_batch(project, store, repair=True)
    work(project, store)
    view = view_batch(project, store)
    assert (view.status, view.tally.counts["done"]) == ("completed", 10)
