"""Retry: which pages a choice means, also where records or names are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import Retried, _lines, retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.keys import batch_key, page_id_for, status_key
from nimbus_tasks.core.pages import PageInfo, read_statuses
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import width
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


def every_key(store: Store) -> dict[str, str]:
    """All that the store holds."""
    return {key: e.value for key, e in store.get_many([i.key for i in store.scan("")]).items()}


def failed_pages(project: Project, store: Store, *paths: str, code: str = "broken") -> str:
    """A batch of pages of those paths, all of which have failed."""
    folder = project.folder / "some"
    for number, path in enumerate(paths):
        write_map(folder, f"{number}.json", a_map(path))
    batch_id = upload(project, store, folder).batch_id
    work(project, store, failing(*paths, code=code))
    assert batch_id is not None
    return batch_id


def test_a_dry_run_writes_not_a_byte(project: Project, store: Store) -> None:
    failed_pages(project, store, "a.html", "b.html")
    before = every_key(store)
    retried = retry_pages(project, store, dry_run=True)
    assert len(retried.requeued) == 2
    assert every_key(store) == before
    assert retried.to_json()["dry_run"] is True


def test_pages_are_claimed_again_in_the_order_of_their_paths(
    project: Project, store: Store
) -> None:
    failed_pages(project, store, "c.html", "a.html", "b.html")
    retry_pages(project, store)
    seen: list[str] = []

    def process(page: Any, progress: Any) -> dict[str, Any]:
        seen.append(page["source_path"])
        return {}

    work(project, store, process, concurrency=1)
    assert seen == ["a.html", "b.html", "c.html"]


def test_retried_pages_go_before_new_ones(project: Project, store: Store, maps: Path) -> None:
    first = failed_pages(project, store, "z-failed.html")
    upload(project, store, maps)
    retry_pages(project, store, first)
    seen: list[str] = []

    def process(page: Any, progress: Any) -> dict[str, Any]:
        seen.append(page["source_path"])
        return {}

    work(project, store, process, concurrency=1)
    assert (seen[0], len(seen)) == ("z-failed.html", 11)


def test_the_batch_record_says_retrying_too(project: Project, store: Store) -> None:
    """Who reads batch records only, like the seed's dashboard, sees it."""
    batch = failed_pages(project, store, "a.html")
    retry_pages(project, store)
    entry = store.get(batch_key(project.project_id, batch))
    assert entry is not None
    record = json.loads(entry.value)
    assert record["status"] == "retrying"
    assert [page["status"] for page in record["pages"].values()] == ["queued"]
    assert record["summary"]["failed"] == 0
    assert verify_batch(project, store).findings == []


def test_a_page_and_a_code_choose_together(project: Project, store: Store) -> None:
    failed_pages(project, store, "a.html", "b.html")
    assert retry_pages(project, store, page="a.html", code="other").requeued == []
    assert retry_pages(project, store, page="a.html", code="broken").names == ["a.html"]


@pytest.mark.parametrize(
    "path",
    [
        "a b",
        "über/uns",
        "x:y",
        "about",
        "page_000000000000",
    ],
)
def test_a_page_is_found_by_its_path_whatever_that_looks_like(
    project: Project, store: Store, path: str
) -> None:
    failed_pages(project, store, path, "other.html")
    expected = [page_id_for(project.project_id, path)]
    assert retry_pages(project, store, page=path).requeued == expected


def test_an_id_goes_before_a_path_that_looks_like_it(project: Project, store: Store) -> None:
    page_id = page_id_for(project.project_id, "a.html")
    failed_pages(project, store, "a.html", page_id)
    assert retry_pages(project, store, page=page_id).names == ["a.html"]


@pytest.mark.parametrize("code", ["x" * 80, "überlastet-überlastet"], ids=["long", "not ASCII"])
def test_pages_are_found_by_the_whole_code_that_the_processor_gave(
    project: Project, store: Store, code: str
) -> None:
    failed_pages(project, store, "a.html", code=code)
    assert len(retry_pages(project, store, code=code).requeued) == 1


def test_a_code_that_no_failed_page_has_is_said_with_those_that_there_are(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html", code="refused"))
    retried = retry_pages(project, store, code="refusd")
    assert (retried.requeued, retried.other_codes) == ([], ("refused",))
    title, there = _lines(retried, Style(colour=False, unicode=True), 80)
    assert title.endswith(f" No failed pages with that code to retry in {retried.batch_id}")
    assert there == "   there are: refused"
    assert retry_pages(project, store).other_codes == ()


def test_a_page_without_a_code_is_retried_by_the_name_that_the_figures_give_it(
    project: Project, store: Store
) -> None:
    """The seed's Worker may fail a page with a message alone."""
    batch = failed_pages(project, store, "a.html")
    record = {"status": "failed", "batch_id": batch, "error": {"message": "no"}, "attempts": 1}
    key = status_key(project.project_id, page_id_for(project.project_id, "a.html"))
    store.put(key, json.dumps(record))
    [code] = view_batch(project, store).tally.errors
    assert len(retry_pages(project, store, code=code).requeued) == 1


def test_a_page_that_is_further_than_the_listing_says_is_left_alone(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where listings lag, a page that is listed as failed may have been retried and done since."""
    upload(project, store, maps)
    head = batches.find(store, project.project_id, None)
    pages = list(batches.pages_of(store, head))
    stale = [PageInfo(page.page_id, {**page.status, "status": "failed"}) for page in pages]
    monkeypatch.setattr(batches, "pages_of", lambda *_: iter(stale))
    retried = retry_pages(project, store)
    assert retried.requeued == []
    monkeypatch.undo()
    assert [page.status["status"] for page in batches.pages_of(store, head)] == ["queued"] * 10
    statuses = read_statuses(store, project.project_id, [page.page_id for page in pages])
    assert {status.priority for status in statuses.values()} == {5}


def test_cancelled_pages_that_nobody_asked_for_are_said(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    cancel_batch(project, store, "latest")
    retried = retry_pages(project, store)
    assert (retried.requeued, retried.cancelled) == ([], 10)
    assert _lines(retried, Style(colour=False, unicode=True), 80)[1] == (
        "   10 pages are cancelled; --include-cancelled takes them too"
    )
    again = retry_pages(project, store, include_cancelled=True)
    assert (len(again.requeued), again.cancelled) == (10, 0)


def test_what_was_queued_again_fits_a_narrow_terminal() -> None:
    retried = Retried("batch_20261127_002712", "retrying", ["page_1"], ["dist/a.html"], 0)
    lines = _lines(retried, Style(colour=True, unicode=True), 60)
    assert max(map(width, lines)) <= 60
    assert lines[1] == "   new pages"
