"""``nimbus.batch.report``: what became of every page, as a JSON file and a summary.

The file is written page by page, beside its place and then put there, so that a batch of 100,000
pages needs little memory and a reader never meets half a report.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from invoke.context import Context

from nimbus_tasks.batch.metrics import metric_lines
from nimbus_tasks.command import (
    BATCH_HELP,
    EXIT_STATUS_HELP,
    Console,
    command,
    exit_with_outcome,
    project_root,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import to_iso, utc_now
from nimbus_tasks.core.keys import status_key, superseded_key
from nimbus_tasks.core.logs import log_counts
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.core.pages import PageInfo, status_or_none
from nimbus_tasks.core.project import Project, load_project, write_atomically
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.ui.batch_view import count_lines, failure_lines, heading
from nimbus_tasks.ui.text import clean

_PAGES_A_READ = 500
_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class Report:
    """Where the report lies, and the look at the batch that it was made from."""

    path: Path
    view: BatchView


def write_report(project: Project, store: Store, batch: str | None = None) -> Report:
    """Write the report of a batch (the latest, if left out) to the project's reports folder.

    Raises :class:`NotFoundError` for an unknown batch, :class:`StoreError` if it cannot be written.
    """
    now = utc_now()
    with store.snapshot() as reading:
        head = batches.find(reading, project.project_id, batch)
        view = batches.look(reading, head, now)
        path = project.reports / f"{head.batch_id}_report.json"
        write_atomically(path, _document(reading, view, to_iso(now)))
    return Report(path, view)


def _document(store: KeyValues, view: BatchView, generated: str) -> Iterator[str]:
    """The report's JSON in parts: a head, then a page a line."""
    head = {
        **view.to_json(),
        "generated": generated,
        "metrics": batch_metrics(view.tally).to_json(),
    }
    for passing in ("pages_per_second", "seconds_left"):
        del head[passing]
    yield json_module.dumps(head, indent=2, ensure_ascii=False)[:-2] + ',\n  "pages": ['
    separator = "\n    "
    for row in _rows(store, view):
        yield separator + json_module.dumps(row, ensure_ascii=False, allow_nan=False)
        separator = ",\n    "
    yield "\n  ]\n}\n"


def _rows(store: KeyValues, view: BatchView) -> Iterator[dict[str, Any]]:
    """One object a page, in the order of their paths."""
    head = view.head
    logged = log_counts(store, head.project_id)
    found = sorted(batches.pages_of(store, head), key=lambda page: (page.name, page.page_id))
    remaining = iter(found)
    while chunk := list(islice(remaining, _PAGES_A_READ)):
        whole = _whole_records(store, head, chunk)
        for page in chunk:
            yield _row(page, whole.get(page.page_id), logged.get(page.page_id, 0))
    if len(found) < head.page_count:
        there = {page.page_id for page in found}
        listed = batches.load(store, head.project_id, head.batch_id).pages
        for page_id in sorted(listed.keys() - there):
            yield _row(PageInfo(page_id, {"status": "uploaded"}), None, 0)


def _whole_records(
    store: KeyValues, head: BatchHead, pages: list[PageInfo]
) -> dict[str, PageStatus]:
    """The records of pages of which the listing has the beginning only: of an error, or a path."""
    project_id = head.project_id
    keys = {
        superseded_key(project_id, head.batch_id, page.page_id)
        if page.status.get("superseded_by")
        else status_key(project_id, page.page_id): page.page_id
        for page in pages
        if page.status["status"] == "failed" or page.name.endswith("…")
    }
    listed = {page.page_id: (head.batch_id, page.status["status"]) for page in pages}
    found = {}
    for key, entry in store.get_many(keys).items():
        status = status_or_none(entry)
        # Where reads lag, the record may be older than the listing, and says nothing of its error.
        if status is not None and (status.batch_id, status.state) == listed[keys[key]]:
            found[keys[key]] = status
    return found


def _row(page: PageInfo, whole: PageStatus | None, log_entries: int) -> dict[str, Any]:
    status = page.status if whole is None else {**page.status, **_texts(whole)}
    return {
        "page_id": page.page_id,
        "path": status.get("path"),
        "status": status["status"],
        "uploaded": status.get("uploaded"),
        "completed": status.get("completed"),
        "changes": status.get("changes"),
        "confidence": status.get("confidence"),
        "error": status.get("error"),
        "code": status.get("code"),
        "attempts": status.get("attempts", 0),
        "duration_ms": status.get("duration_ms"),
        "log_entries": log_entries,
        **({"superseded_by": by} if (by := status.get("superseded_by")) else {}),
    }


def _texts(status: PageStatus) -> dict[str, str | None]:
    return {"path": status.path, "error": status.error, "code": status.code}


@command(
    help={
        "batch": BATCH_HELP,
        "exit-status": EXIT_STATUS_HELP,
        "json": "print the report itself on stdout, and nothing else there",
    }
)
def report(
    c: Context, batch: str | None = None, exit_status: bool = False, json: bool = False
) -> Report:
    """Write a batch's report; show its summary."""
    console = Console(json_only=json)
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        written = write_report(project, store, batch)
    if json:
        with written.path.open(encoding="utf-8") as file:
            console.json_text(file)
    else:
        console.say(*_lines(written, console))
    if exit_status:
        exit_with_outcome(written.view.status)
    return written


def _lines(written: Report, console: Console) -> list[str]:
    view, style, columns = written.view, console.style, console.columns
    return [
        *heading(view, style, columns, utc_now()),
        *count_lines(view, style, columns),
        "",
        *metric_lines(batch_metrics(view.tally)),
        *failure_lines(view.failures, view.tally.states["failed"], style, columns, _FAILURES_SHOWN),
        "",
        f"{style.sign('ok')} Report: {clean(_shown(written.path))}",
    ]


def _shown(path: Path) -> str:
    """The path as seen from where the person is, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
