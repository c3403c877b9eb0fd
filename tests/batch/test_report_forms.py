"""The report's three forms: one reading, one truth, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.report.as_html import verdict
from nimbus_tasks.batch.report.rows import FIELDS, keeping, report_rows
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.lifecycle import PAGE_STATES, Tally
from nimbus_tasks.core.pace import UNKNOWN
from nimbus_tasks.core.pages import PageGroup, PageInfo
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.ui.text import shown
from tests.ended_batches import BATCH_ID, outcomes, put_batch, put_ended_batch, write_html
from tests.factories import invoke, upload, work

FORMATS = ("json", "html", "csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def a_page(**fields: Any) -> PageStatus:
    return replace(next(outcomes(1)), **fields)


def test_each_form_has_its_file_and_no_other_is_written(project: Project, store: Store) -> None:
    put_ended_batch(project, store, 3)
    written = write_report(project, store, formats=("html", "csv"))
    assert {path.name for path in project.reports.iterdir()} == {
        f"{BATCH_ID}_report.html",
        f"{BATCH_ID}_report.csv",
    }
    assert written.path == written.paths["html"]


def test_all_forms_are_of_one_reading_of_the_store(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ended_batch(project, store, 30)
    listings = []
    groups_of = batches.groups_of

    def counted(store: KeyValues, head: BatchHead) -> Iterator[PageGroup]:
        listings.append(head)
        return groups_of(store, head)

    monkeypatch.setattr(batches, "groups_of", counted)
    paths = write_report(project, store, formats=FORMATS).paths
    assert len(listings) == 1
    document = json.loads(paths["json"].read_text(encoding="utf-8"))
    rows = table(paths["csv"])
    assert [row["page_id"] for row in rows] == [page["page_id"] for page in document["pages"]]
    for row, page in zip(rows, document["pages"], strict=True):
        assert row == {n: "" if page.get(n) is None else str(page[n]) for n in FIELDS}


@pytest.mark.parametrize("synced", [0, 1, 2])
def test_where_one_form_cannot_be_written_none_is_changed(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch, synced: int
) -> None:
    put_ended_batch(project, store, 3)
    before = write_report(project, store, formats=FORMATS).paths
    texts = {path: path.read_bytes() for path in before.values()}

    done: list[int] = []

    def full(fd: int) -> None:
        if len(done) == synced:
            raise OSError(28, "No space left on device")
        done.append(fd)

    put_ended_batch(project, store, 4)  # it would say something else
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left") as failed:
            write_report(project, store, formats=FORMATS)
    assert "Free some space" in (failed.value.advice or "")
    assert {path: path.read_bytes() for path in project.reports.iterdir()} == texts


def test_a_folder_in_the_place_of_one_form_is_found_before_any_is_written(
    project: Project, store: Store
) -> None:
    put_ended_batch(project, store, 3)
    (project.reports / f"{BATCH_ID}_report.json").mkdir(parents=True)
    with pytest.raises(StoreError, match="directory"):
        write_report(project, store, formats=FORMATS)
    assert [path.name for path in project.reports.iterdir()] == [f"{BATCH_ID}_report.json"]


def test_csv_is_what_rfc_4180_says(project: Project, store: Store) -> None:
    error = 'a "quoted"\r\nthing, with\nlines'
    put_batch(project, store, [a_page(state="failed", error=error, code="x", path="dist/ü,.html")])
    path = write_report(project, store, formats=("csv",)).path
    text = path.read_bytes().decode("utf-8")
    assert text.startswith("\ufeff" + ",".join(FIELDS) + "\r\n")
    assert text.endswith("\r\n")
    assert '"a ""quoted""\r\nthing, with\nlines"' in text
    assert (table(path)[0]["error"], table(path)[0]["path"]) == (error, "dist/ü,.html")


def test_what_a_page_has_taken_is_in_its_row_and_the_columns_stay(
    project: Project, store: Store
) -> None:
    put_batch(
        project,
        store,
        [a_page(path="a", tokens_in=600, tokens_out=0, cost=0.0002), a_page(path="b")],
    )
    paths = write_report(project, store, formats=("csv", "json")).paths
    counted, other = table(paths["csv"])
    names = ("tokens_in", "tokens_out", "cost")
    assert [counted[name] for name in names] == ["600", "0", "0.0002"]
    assert [other[name] for name in names] == ["", "", ""]
    pages = json.loads(paths["json"].read_text(encoding="utf-8"))["pages"]
    assert [pages[0].get(name) for name in names] == [600, 0, 0.0002]
    assert not pages[1].keys() & set(names)


@pytest.mark.parametrize(
    "text",
    ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|'/C calc'!A0"],
)
def test_no_cell_is_a_formula(project: Project, store: Store, text: str) -> None:
    page = a_page(state="failed", path=text, error=text, code=text)
    put_batch(project, store, [page])
    row = table(write_report(project, store, formats=("csv",)).path)[0]
    assert {row["path"], row["error"], row["code"]} == {"'" + text}


def test_a_negative_number_stays_a_number_and_a_long_text_fits_a_cell(
    project: Project, store: Store
) -> None:
    put_batch(project, store, [a_page(state="failed", error="\0" + "é" * 40_000, code="x")])
    row = table(write_report(project, store, formats=("csv",)).path)[0]
    assert (len(row["error"]), row["error"][0]) == (32_001, "\N{REPLACEMENT CHARACTER}")
    assert row["attempts"] == "1"


def test_half_a_surrogate_pair_of_somebody_else_is_text_in_every_form(
    project: Project, store: Store
) -> None:
    head = BatchHead("b", project.project_id, "", 1, "completed", "run")
    page = PageInfo("page_1", {"status": "done", "batch_id": "b", "path": "a\ud800b"})
    kept: list[Any] = []
    group = PageGroup.of([page])
    assert list(keeping([group], kept)) == [group]
    ((row,),) = report_rows(store, head, kept)
    assert row["path"] == "a?b"
    assert shown("a\ud800b", 10) == "a\N{REPLACEMENT CHARACTER}b"


def test_a_hundred_pages_fit_into_150_kb(project: Project, store: Store) -> None:
    put_ended_batch(project, store, 100)
    assert write_report(project, store, formats=("html",)).path.stat().st_size <= 150_000


def test_a_hundred_failed_pages_fit_as_well(project: Project, store: Store) -> None:
    failed = [
        replace(page, state="failed", code="ValueError", error=f"{page.path} " + "no h1 " * 60)
        for page in outcomes(100)
    ]
    put_batch(project, store, failed)
    assert write_report(project, store, formats=("html",)).path.stat().st_size <= 150_000


def test_the_html_asks_for_nothing_and_names_no_place(project: Project, store: Store) -> None:
    put_ended_batch(project, store, 5)
    text = write_report(project, store, formats=("html",)).path.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"'](?!#)[^\s>]+", text) == []
    assert "http" not in text.replace("http-equiv", "")
    assert str(project.root) not in text
    assert "default-src &#39;none&#39;" in text


def test_the_html_says_with_which_settings(project: Project, store: Store) -> None:
    put_ended_batch(project, store, 5)
    options = {"processor": "mysite.ai:rewrite", "concurrency": 16}
    path = write_report(project, store, formats=("html",), options=options).path
    text = path.read_text(encoding="utf-8")
    assert "nimbus.worker.processor" in text
    assert "mysite.ai:rewrite" in text


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ("keys", "one key an item"),
        ("document", "one document"),
        ("cloudflare-queues", "a Cloudflare Queue"),
    ],
)
def test_the_html_says_how_the_queue_is_kept(
    project: Project, tmp_path: Path, queue: str, said: str
) -> None:
    path = tmp_path / "report.html"
    write_html(path, replace(project, queue=queue), outcomes(1))
    assert said in path.read_text(encoding="utf-8")


def test_a_batch_that_nobody_has_worked_on_has_a_report_too(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    text = write_report(project, store, formats=("html",)).path.read_text(encoding="utf-8")
    assert "Not begun yet." in text
    assert "No page has ended yet." in text
    assert f"<span>--batch={batch}</span>" in text
    work(project, store)
    text = write_report(project, store, formats=("html",)).path.read_text(encoding="utf-8")
    assert "All 10 pages are done." in text
    assert "What failed" not in text


@pytest.mark.parametrize(
    ("status", "counts", "said"),
    [
        ("completed", {"done": 1}, "The one page is done."),
        ("completed", {}, "No pages."),
        ("completed", {"done": 3}, "All 3 pages are done."),
        ("partially_completed", {"done": 1, "failed": 2}, "1 of 3 pages are done, 2 failed."),
        ("failed", {"failed": 3}, "All 3 pages failed."),
        ("failed", {"failed": 2, "cancelled": 1}, "No page is done; 2 failed."),
        ("cancelled", {"done": 1, "cancelled": 4}, "Cancelled, with 1 of 5 pages done."),
        ("uploading", {"queued": 4}, "Being uploaded: 4 of 4 pages are there."),
        ("queued", {"queued": 4}, "Not begun yet."),
        ("processing", {"processing": 4}, "Begun: 4 pages to do."),
        ("retrying", {"done": 4, "queued": 1}, "Under way: 4 of 5 pages have ended."),
    ],
)
def test_the_verdict_is_a_sentence(status: str, counts: dict[str, int], said: str) -> None:
    tally = Tally(0)
    for state in PAGE_STATES:
        for _ in range(counts.get(state, 0)):
            tally.add({"status": state})
    head = BatchHead("b", "p", "", 0, "", "run")
    assert verdict(BatchView(head, tally, status, UNKNOWN)) == said


def browser(tmp_path: Path, *, works: bool = True) -> dict[str, str]:
    """A browser that only writes down what it is asked for."""
    script = tmp_path / "browser"
    script.write_text(
        f'#!/bin/sh\necho noise\necho "$1" > {tmp_path}/asked\nexit {int(not works)}\n'
    )
    script.chmod(0o755)
    return {"BROWSER": f"{script} %s", "PATH": os.environ["PATH"]}


def test_the_command_writes_what_it_is_told_and_opens_it(
    project: Project, store: Store, tmp_path: Path
) -> None:
    put_ended_batch(project, store, 4)
    ran = invoke(
        project.root,
        "nimbus.batch.report",
        "--format=CSV, json",
        "--open",
        timeout=60,
        **browser(tmp_path),
    )
    assert (ran.returncode, ran.stderr.strip()) == (0, "noise")
    lines = [line for line in ran.stdout.splitlines() if "Report:" in line]
    assert [Path(line).suffix for line in lines] == [".csv", ".json", ".html"]
    path = project.reports / f"{BATCH_ID}_report.html"
    assert (tmp_path / "asked").read_text().strip() == path.as_uri()


def test_without_a_browser_it_says_which_file_to_open(
    project: Project, store: Store, tmp_path: Path
) -> None:
    put_ended_batch(project, store, 4)
    environment = browser(tmp_path, works=False) | {
        "PATH": "",
        "DISPLAY": "",
        "WAYLAND_DISPLAY": "",
    }
    ran = invoke(project.root, "nimbus.batch.report", "--open", "--json", timeout=60, **environment)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["batch_id"] == BATCH_ID
    assert f".nimbus/reports/{BATCH_ID}_report.html" in ran.stderr


def test_json_on_stdout_stays_what_it_is_whatever_is_written(
    project: Project, store: Store
) -> None:
    put_ended_batch(project, store, 4)
    ran = invoke(project.root, "nimbus.batch.report", "--format=html", "--json")
    assert len(json.loads(ran.stdout)["pages"]) == 4
    assert {path.suffix for path in project.reports.iterdir()} == {".html", ".json"}


@pytest.mark.parametrize("given", ["pdf", "", ",", "json,,html", "json html"])
def test_a_format_that_there_is_not_is_refused(project: Project, store: Store, given: str) -> None:
    put_ended_batch(project, store, 1)
    ran = invoke(project.root, "nimbus.batch.report", f"--format={given}")
    assert ran.returncode == 2
    assert "--format takes json, html, csv, or several" in ran.stderr
    assert not project.reports.exists()


@pytest.mark.parametrize("given", ["html,csv", "[html, csv]"])
def test_formats_can_be_settings(project: Project, store: Store, given: str) -> None:
    put_ended_batch(project, store, 1)
    (project.root / "invoke.yaml").write_text(f"nimbus:\n  report:\n    format: {given}\n")
    assert invoke(project.root, "nimbus.batch.report").returncode == 0
    assert {path.suffix for path in project.reports.iterdir()} == {".html", ".csv"}


@pytest.mark.parametrize("settings", ["{concurrency: 0, max_attempts: 7}", "5"])
def test_what_is_wrong_with_the_workers_settings_ends_no_report(
    project: Project, store: Store, settings: str
) -> None:
    put_ended_batch(project, store, 1)
    (project.root / "invoke.yaml").write_text(f"nimbus: {{worker: {settings}}}\n")
    ran = invoke(project.root, "nimbus.batch.report", "--format=json,html")
    assert (ran.returncode, ran.stderr) == (0, "")
    html = (project.reports / f"{BATCH_ID}_report.html").read_text(encoding="utf-8")
    assert "nimbus.worker.concurrency" not in html
    assert ("nimbus.worker.max_attempts" in html) == ("7" in settings)
