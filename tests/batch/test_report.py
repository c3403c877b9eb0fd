"""The report's file: whole, of this batch and no other, readable by whoever reads JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import logs_key
from nimbus_tasks.core.logs import read_logs
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.processors import Processor
from tests.factories import a_map, upload, upload_cut_off, work, write_map

CYRILLIC = "dist/" + "страница/" * 8 + "index.html"


def fails_with(error: Exception) -> Processor:
    """A processor that fails every page that way."""

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        raise error

    return process


def report(project: Project, store: Store, batch: str | None = None) -> Any:
    return json.loads(write_report(project, store, batch).path.read_text(encoding="utf-8"))


def test_a_report_lies_under_the_name_of_its_batch(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    path = write_report(project, store).path
    assert path == project.folder / "reports" / f"{batch}_report.json"
    (project.root / "plain").touch()
    assert path.stat().st_mode == (project.root / "plain").stat().st_mode  # others may read it


def test_a_second_report_takes_the_place_of_the_first(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    assert report(project, store)["status"] == "queued"
    work(project, store)
    assert report(project, store)["status"] == "completed"
    assert len(list(project.reports.iterdir())) == 1


def test_a_batch_that_is_not_there_has_no_report(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    with pytest.raises(NotFoundError):
        write_report(project, store, "batch_20200101_000000")
    assert not project.reports.exists()


def test_pages_that_a_later_batch_took_over_are_in_the_report_of_both(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    work(project, store)
    second = upload(project, store, maps).batch_id
    older, newer = report(project, store, first), report(project, store, second)
    assert {(p["status"], p["superseded_by"]) for p in older["pages"]} == {("done", second)}
    assert {p["status"] for p in newer["pages"]} == {"queued"}
    assert not any("superseded_by" in page for page in newer["pages"])


def test_each_page_is_a_line_that_is_json_of_its_own(
    project: Project, store: Store, maps: Path
) -> None:
    write_map(maps, "odd.json", a_map('dist/\u2028"</script>\x1b[31m漢字\x00.html'))
    upload(project, store, maps)
    text = write_report(project, store).path.read_text(encoding="utf-8")
    rows = [line.strip().removesuffix(",") for line in text.split("\n") if '"page_id"' in line]
    assert len([json.loads(row) for row in rows]) == 11


def test_the_report_of_an_older_batch_has_its_own_errors(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    work(project, store, fails_with(ValueError("the first time")))
    upload(project, store, maps)
    work(project, store, fails_with(ValueError("the second time")))
    assert {p["error"] for p in report(project, store, first)["pages"]} == {"the first time"}


@pytest.mark.parametrize("path", ["dist/" + "page/" * 60 + "index.html", CYRILLIC])
def test_a_long_path_is_in_the_report_whole(
    project: Project, store: Store, maps: Path, path: str
) -> None:
    write_map(maps, "long.json", a_map(path))
    upload(project, store, maps)
    assert path in [page["path"] for page in report(project, store)["pages"]]


def test_a_long_code_is_in_the_report_whole(project: Project, store: Store, maps: Path) -> None:
    name = "UpstreamServiceAnsweredWithSomethingThatIsNoDocumentAtAllError"
    upload(project, store, maps)
    work(project, store, fails_with(type(name, (Exception,), {})("no")))
    assert {page["code"] for page in report(project, store)["pages"]} == {name}


def test_pages_that_were_listed_and_never_sent_are_in_the_report(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps, after=1)
    written = report(project, store)
    states = [page["status"] for page in written["pages"]]
    assert states == ["queued"] * 4 + ["uploaded"] * 6
    assert (written["status"], written["page_count"]) == ("uploading", 10)
    assert written["counts"]["uploaded"] == 6
    assert len({page["page_id"] for page in written["pages"]}) == 10


def test_pages_that_were_never_sent_have_their_order_too(
    project: Project, store: Store, maps: Path
) -> None:
    """They have no path yet: their ids are what they are known by, as everywhere."""
    upload_cut_off(project, store, maps)
    never_sent = [page["page_id"] for page in report(project, store)["pages"]]
    assert len(never_sent) == 10
    assert never_sent == sorted(never_sent)


def test_log_entries_are_as_many_as_the_page_has_over_all_attempts(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store, fails_with(ValueError("no")))
    once = {page["page_id"]: page["log_entries"] for page in report(project, store)["pages"]}
    assert set(once.values()) == {1}
    retry_pages(project, store)
    work(project, store)
    for page in report(project, store)["pages"]:
        entry = store.get(logs_key(project.project_id, page["page_id"]))
        assert page["log_entries"] == len(read_logs(entry)) > once[page["page_id"]]


def test_a_report_of_the_same_pages_is_the_same_but_for_its_time(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store)
    first, second = report(project, store), report(project, store)
    assert first.pop("generated") <= second.pop("generated")
    assert first == second


def test_a_page_that_is_done_has_no_error_of_an_earlier_attempt(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    work(project, store, fails_with(ValueError("no")))
    retry_pages(project, store)
    work(project, store)
    pages = report(project, store)["pages"]
    assert {(page["status"], page["error"], page["code"]) for page in pages} == {
        ("done", None, None)
    }
