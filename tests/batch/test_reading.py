"""Status, list, monitor, wait, report and metrics: looks at a batch that all say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.list import list_batches
from nimbus_tasks.batch.metrics import measure_batch
from nimbus_tasks.batch.monitor import watch_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.wait import wait_for_batch
from nimbus_tasks.core.errors import NotFoundError, StoreError, TimedOutError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import a_map, failing, upload, upload_cut_off, work, write_map


def report(project: Project, store: Store) -> Any:
    return json.loads(write_report(project, store).path.read_text(encoding="utf-8"))


def test_without_a_batch_there_is_nothing_to_look_at(project: Project, store: Store) -> None:
    assert list_batches(project, store) == []
    with pytest.raises(NotFoundError, match="no batch yet"):
        view_batch(project, store)


def test_a_batch_goes_from_queued_over_processing_to_its_end(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    seen = [view_batch(project, store).status]

    def process(page: Any, progress: Any) -> dict[str, Any]:
        with project.open_store() as another:
            seen.append(view_batch(project, another).status)
        return {}

    work(project, store, process)
    seen.append(view_batch(project, store).status)
    assert (seen[0], set(seen[1:-1]), seen[-1]) == ("queued", {"processing"}, "completed")


def test_the_document_of_a_status_has_the_fields_that_scripts_rely_on(
    project: Project, store: Store, maps: Path
) -> None:
    batch_id = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-001.html"))
    document = view_batch(project, store).to_json()
    assert document["batch_id"] == batch_id
    assert document["project_id"] == project.project_id
    assert document["counts"] == {
        "uploaded": 0, "queued": 0, "processing": 0, "done": 9, "failed": 1, "cancelled": 0
    }  # fmt: skip
    assert document["summary"].keys() == {"completed", "failed", "pending", "average_time_ms"}
    assert (document["page_count"], document["finished"]) == (10, True)
    json.dumps(document, allow_nan=False)


def test_the_list_is_newest_first_and_can_be_narrowed(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-001.html"))
    second = upload(project, store, maps).batch_id
    rows = list_batches(project, store)
    assert [(row.batch_id, row.status) for row in rows] == [
        (second, "queued"),
        (first, "partially_completed"),
    ]
    assert rows[1].summary["failed"] == 1
    assert [r.batch_id for r in list_batches(project, store, limit=1)] == [second]
    failed = list_batches(project, store, status="partially_completed", limit=1)
    assert [row.batch_id for row in failed] == [first]


def test_the_report_has_the_seeds_fields_and_every_page_in_the_order_of_paths(
    project: Project, store: Store, maps: Path
) -> None:
    write_map(maps, "odd.json", a_map('dist/é–"quoted"\x1b[31m.html'))
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    written = report(project, store)
    assert written["summary"] == {
        "completed": 10, "failed": 1, "pending": 0,
        "average_time_ms": written["summary"]["average_time_ms"],
    }  # fmt: skip
    paths = [page["path"] for page in written["pages"]]
    assert paths == sorted(paths)
    assert len(paths) == 11
    failed = written["pages"][paths.index("dist/page-001.html")]
    assert failed["status"] == "failed"
    assert failed["error"] == "cannot do dist/page-001.html"
    assert (failed["code"], failed["attempts"], failed["log_entries"]) == ("broken", 1, 2)
    done = written["pages"][paths.index("dist/page-002.html")]
    assert (done["changes"], done["confidence"], done["error"]) == (2, 0.5, None)
    assert done["uploaded"] < done["completed"]
    assert written["metrics"]["errors"] == {"broken": 1}


def test_the_report_has_errors_in_full(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)

    def process(page: Any, progress: Any) -> dict[str, Any]:
        raise ValueError("x" * 1500)

    work(project, store, process)
    assert {len(page["error"]) for page in report(project, store)["pages"]} == {1500}


def test_a_report_can_be_made_of_an_upload_that_was_cut_off(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps)
    written = report(project, store)
    assert (written["status"], written["finished"]) == ("uploading", False)
    assert {page["status"] for page in written["pages"]} == {"uploaded"}
    assert len(written["pages"]) == 10


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    path = write_report(project, store).path
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_report(project, store)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_metrics_are_those_of_the_pages(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    document = measure_batch(project, store).to_json()
    assert document["total_pages"] == 10
    assert document["success_rate"] == 90.0
    assert document["total_changes"] == 18
    assert document["average_confidence"] == 0.5
    assert document["attempts"] == 10
    assert document["errors"] == {"broken": 1}
    assert document["p50_time_ms"] <= document["p95_time_ms"]


def test_metrics_of_a_batch_not_begun_have_nothing_to_divide_by(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    document = measure_batch(project, store).to_json()
    assert (document["average_confidence"], document["pages_per_minute"]) == (None, None)
    assert document["success_rate"] == 0.0


def test_a_watch_ends_with_the_batch_and_stays_with_the_one_it_chose(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id

    def sleep(seconds: float) -> None:
        work(project, store)
        write_map(maps / "later", "new.json", a_map("dist/new.html"))
        upload(project, store, maps / "later")  # from now on the latest is another one

    views = list(watch_batch(project, store, interval=5, sleep=sleep))
    assert [view.status for view in views] == ["queued", "completed"]
    assert {view.head.batch_id for view in views} == {first}


def test_a_watch_gives_up_after_its_time(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    slept: list[float] = []
    with pytest.raises(TimedOutError, match="still queued"):
        list(watch_batch(project, store, interval=5, timeout=0.01, sleep=slept.append))
    assert all(seconds <= 0.01 for seconds in slept)


def test_waiting_for_a_batch_that_has_ended_returns_at_once(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store)
    sights: list[Any] = []
    assert wait_for_batch(project, on_sight=sights.append).status == "completed"
    assert len([sight for sight in sights if sight.view]) == 1
