"""Retry where records or names are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.core.keys import page_id_for, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import a_map, failing, upload, work, write_map


def test_a_failed_page_whose_record_is_damaged_does_not_keep_the_others_back(
    project: Project, store: Store, maps: Path
) -> None:
    paths = ("dist/page-001.html", "dist/page-002.html")
    upload(project, store, maps)
    work(project, store, failing(*paths))
    damaged, other = (page_id_for(project.project_id, path) for path in paths)
    entry = store.get(status_key(project.project_id, damaged))
    assert entry is not None
    store.put(entry.key, "{damaged", entry.metadata)
    assert other in retry_pages(project, store).requeued


def test_a_page_is_retried_by_the_path_that_the_report_has(
    project: Project, store: Store, maps: Path
) -> None:
    path = "dist/" + "page/" * 60 + "index.html"
    write_map(maps, "long.json", a_map(path))
    upload(project, store, maps)
    work(project, store, failing(path))
    pages: list[Any] = json.loads(write_report(project, store).path.read_text())["pages"]
    [reported] = [page["path"] for page in pages if page["status"] == "failed"]
    assert len(retry_pages(project, store, page=reported).requeued) == 1


def test_pages_are_chosen_by_a_long_code_too(project: Project, store: Store, maps: Path) -> None:
    code = "upstream_service_answered_with_something_that_is_no_document_at_all"
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html", code=code))
    assert len(retry_pages(project, store, code=code).requeued) == 1


def test_the_logs_keep_every_attempt_over_retries(
    project: Project, store: Store, maps: Path
) -> None:
    from nimbus_tasks.core.keys import logs_key
    from nimbus_tasks.core.logs import read_logs

    path = "dist/page-001.html"
    upload(project, store, maps)
    process = failing(path, times=2)
    for _ in range(3):
        work(project, store, process)
        retry_pages(project, store)
    entries = read_logs(
        store.get(logs_key(project.project_id, page_id_for("proj_0123456789ab", path)))
    )
    assert [(e["level"], e["data"]["attempt"]) for e in entries if "data" in e] == [
        ("error", 1),
        ("error", 2),
        ("info", 3),
    ]
    assert sorted(entries, key=lambda entry: str(entry["timestamp"])) == entries
