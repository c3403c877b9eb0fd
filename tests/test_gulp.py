"""Both at once on the same records: these tasks, and programs written as the gulp workflow is.

What such a program does is written out here with plain JSON values: no metadata, no place in the
queue, no leases, JavaScript's times, and fields of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.list import list_batches
from nimbus_tasks.batch.metrics import measure_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.keys import page_id_for
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import failing, upload, work

WHEN = "2024-09-02T13:45:00.000Z"
BATCH = "batch_20240902_134500"


@pytest.fixture(params=["keys", "document"])
def project(project: Project, request: pytest.FixtureRequest) -> Project:
    """With either layout of the queue."""
    return replace(project, queue=request.param)


@pytest.fixture
def store(project: Project) -> Iterator[Store]:
    with project.open_store(create=True) as opened:
        yield opened


class Gulp:
    """What the gulp tasks and their Worker do, on the values alone."""

    def __init__(self, project: Project) -> None:
        self.id = project.project_id
        self._plain = replace(project, queue="keys")

    def get(self, key: str) -> Any:
        with self._plain.open_store(create=True) as store:
            entry = store.get(key)
            return None if entry is None else json.loads(entry.value)

    def put(self, key: str, value: Any) -> None:
        """A write without metadata drops what was there."""
        with self._plain.open_store(create=True) as store:
            store.put(key, json.dumps(value))

    def upload(self, *names: str) -> None:
        pages = {f"page_{name}": {"status": "queued", "uploaded": WHEN} for name in names}
        summary = {"completed": 0, "failed": 0, "pending": len(pages), "average_time_ms": 0}
        batch = {"batch_id": BATCH, "project_id": self.id, "created": WHEN, "status": "queued"}
        whole = {**batch, "page_count": len(pages), "pages": pages, "summary": summary}
        self.put(f"batch:{self.id}:{BATCH}", {**whole, "owner": "gulp"})
        items = []
        for page in pages:
            content = {"page_id": page, "source_path": f"{page}.html", "extraction": {"a": 1}}
            self.put(f"page:{self.id}:{page}", content)
            status = {"status": "queued", "batch_id": BATCH, "updated": WHEN, "site": "a.example"}
            self.put(f"status:{self.id}:{page}", status)
            items.append({"page_id": page, "batch_id": BATCH, "priority": 5, "queued_at": WHEN})
        self.put(f"queue:{self.id}", {"items": items, "version": 3})

    def take(self) -> str:
        """The Worker takes the first item and begins."""
        queue = self.get(f"queue:{self.id}")
        queue["items"].sort(key=lambda item: (-item["priority"], item["queued_at"]))
        item = queue["items"].pop(0)
        self.put(f"queue:{self.id}", queue)
        key = f"status:{self.id}:{item['page_id']}"
        processing = {"started": WHEN, "current_step": "ai_rewrite", "progress": 40}
        self.put(key, {**self.get(key), "status": "processing", "processing": processing})
        return str(item["page_id"])

    def end(self, page_id: str, status: str, **part: Any) -> None:
        """The Worker writes how it ended, in the status and in the batch."""
        key = f"status:{self.id}:{page_id}"
        old = {k: v for k, v in self.get(key).items() if k not in ("processing", "queued")}
        self.put(key, {**old, "status": status, "updated": WHEN, **part})
        batch_key = f"batch:{self.id}:{old['batch_id']}"
        batch = self.get(batch_key)
        batch["pages"][page_id]["status"] = status
        self.put(batch_key, batch)

    def retry(self, batch_id: str) -> list[str]:
        """``gulp nimbus:batch:retry``: failed pages by the batch's own list, one after another."""
        batch = self.get(f"batch:{self.id}:{batch_id}")
        failed = [page for page, info in batch["pages"].items() if info["status"] == "failed"]
        for page in failed:
            status = {
                "status": "queued",
                "batch_id": batch_id,
                "updated": "2099-01-01T00:00:00.000Z",
            }
            self.put(f"status:{self.id}:{page}", status)
            queue = self.get(f"queue:{self.id}") or {"items": []}
            queue["items"] = [item for item in queue["items"] if item["page_id"] != page]
            item = {"page_id": page, "batch_id": batch_id, "priority": 8, "queued_at": WHEN}
            queue["items"].append({**item, "attempts": 1})
            self.put(f"queue:{self.id}", queue)
        batch["status"] = "processing"
        batch["summary"]["pending"] += len(failed)
        batch["summary"]["failed"] = 0
        self.put(f"batch:{self.id}:{batch_id}", batch)
        return failed


@pytest.fixture
def gulp(project: Project) -> Gulp:
    return Gulp(project)


#: The gulp workflow has the queue in one document; what reads it there needs that layout here.
ONE_DOCUMENT = pytest.mark.parametrize("project", ["document"], indirect=True)


def test_a_batch_made_there_is_watched_retried_and_reported_here(
    project: Project, store: Store, gulp: Gulp
) -> None:
    gulp.upload("a", "b", "c")
    first = gulp.take()
    result = {"completed": WHEN, "success": True, "changes": 4, "confidence": 0.75}
    gulp.end(first, "done", result={**result, "model": "large"})
    error = {"message": "429 from the model", "code": "rate_limited", "timestamp": WHEN}
    gulp.end(gulp.take(), "failed", error=error)
    third = gulp.take()

    view = view_batch(project, store)
    assert view.status == "processing"
    assert {k: v for k, v in view.tally.counts.items() if v} == {
        "done": 1, "failed": 1, "processing": 1
    }  # fmt: skip
    [in_flight] = view.in_flight
    assert (in_flight.status["step"], in_flight.status["progress"]) == ("ai_rewrite", 40)
    [failure] = view.failures
    assert failure.status["code"] == "rate_limited"
    gulp.end(third, "done", result={**result, "changes": 2})
    [row] = list_batches(project, store)
    assert (row.status, row.page_count) == ("partially_completed", 3)
    assert measure_batch(project, store).metrics.total_changes == 6

    assert len(retry_pages(project, store, BATCH).requeued) == 1
    assert view_batch(project, store).status == "retrying"
    assert work(project, store).done == 1
    report = json.loads(write_report(project, store, BATCH).path.read_text())
    assert report["status"] == "completed"
    assert {page["status"] for page in report["pages"]} == {"done"}
    record = gulp.get(f"batch:{gulp.id}:{BATCH}")
    assert (record["owner"], record["status"], record["summary"]["completed"]) == (
        "gulp", "completed", 3
    )  # fmt: skip
    assert gulp.get(f"status:{gulp.id}:{first}")["result"]["model"] == "large"
    assert gulp.get(f"status:{gulp.id}:{first}")["site"] == "a.example"
    assert verify_batch(project, store).ok


def test_a_batch_made_there_is_worked_on_here(project: Project, store: Store, gulp: Gulp) -> None:
    gulp.upload("a", "b")
    # Without the document, the pages are queued and in no queue: they are put there.
    assert work(project, store).done == 2
    assert view_batch(project, store).status == "completed"
    assert gulp.get(f"status:{gulp.id}:page_a")["site"] == "a.example"


@ONE_DOCUMENT
def test_a_batch_made_here_is_retried_there(
    project: Project, store: Store, maps: Path, gulp: Gulp
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    work(project, store, failing("dist/page-003.html", "dist/page-005.html"))
    assert view_batch(project, store).status == "partially_completed"
    pages = {page_id_for(project.project_id, f"dist/page-00{n}.html") for n in (3, 5)}
    assert set(gulp.retry(batch)) == pages
    view = view_batch(project, store)
    assert (view.status, view.tally.counts["queued"]) == ("processing", 2)
    assert work(project, store).done == 2
    assert view_batch(project, store).status == "completed"
    assert gulp.get(f"batch:{gulp.id}:{batch}")["summary"]["completed"] == 10


@ONE_DOCUMENT
def test_their_worker_finds_our_pages_in_its_document(
    project: Project, store: Store, maps: Path, gulp: Gulp
) -> None:
    gulp.put(f"queue:{gulp.id}", {"items": [], "version": 3})
    upload(project, store, maps)
    queue = gulp.get(f"queue:{gulp.id}")
    assert queue["version"] == 3
    assert queue["items"][0].keys() == {
        "page_id", "batch_id", "priority", "queued_at", "attempts"
    }  # fmt: skip
    taken = gulp.take()
    assert taken == page_id_for(project.project_id, "dist/page-000.html")
    gulp.end(taken, "done", result={"completed": WHEN, "success": True, "changes": 1})
    assert work(project, store).done == 9
    view = view_batch(project, store)
    assert (view.status, view.tally.total_changes) == ("completed", 1)
    assert gulp.get(f"queue:{gulp.id}") == {"items": [], "version": 3}


@ONE_DOCUMENT
def test_a_cancel_here_empties_their_document(
    project: Project, store: Store, maps: Path, gulp: Gulp
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    taken = gulp.take()
    cancelled = cancel_batch(project, store, batch)
    assert (cancelled.cancelled, cancelled.in_flight) == (9, 1)
    assert gulp.get(f"queue:{gulp.id}")["items"] == []
    gulp.end(taken, "done", result={"completed": WHEN, "success": True, "changes": 1})
    assert view_batch(project, store).status == "cancelled"


@ONE_DOCUMENT
@pytest.mark.parametrize(
    "document", ["no JSON", "[]", '{"items":5}', '{"items":[1,null,{"page_id":"../x"},{}]}']
)
def test_a_document_that_is_rubbish_keeps_nothing_from_being_worked_on(
    project: Project, store: Store, maps: Path, gulp: Gulp, document: str
) -> None:
    upload(project, store, maps)
    store.put(f"queue:{gulp.id}", document)
    assert work(project, store).done == 10
