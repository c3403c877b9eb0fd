"""A report's rows: one object a page, as the JSON file has them and every other form takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.keys import status_key, superseded_key
from nimbus_tasks.core.logs import log_counts
from nimbus_tasks.core.pages import PageInfo, status_or_none
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues

Row = Mapping[str, Any]
#: The fields of a row, in their order; ``superseded_by`` is there where a later batch has the page.
FIELDS = (
    "page_id", "path", "status", "uploaded", "completed", "changes", "confidence", "error", "code",
    "attempts", "duration_ms", "log_entries", "superseded_by",
)  # fmt: skip
_PAGES_A_READ = 500


def report_rows(store: KeyValues, head: BatchHead, pages: Sequence[PageInfo]) -> Iterator[Row]:
    """One object a page, in the order of their paths: ``pages`` are those of the batch that have a
    status, in any order; those that it only lists come last."""
    logged = log_counts(store, head.project_id)
    remaining = iter(sorted(pages, key=lambda page: (page.name, page.page_id)))
    while chunk := list(islice(remaining, _PAGES_A_READ)):
        whole = _whole_records(store, head, chunk)
        for page in chunk:
            yield _row(page, whole.get(page.page_id), logged.get(page.page_id, 0))
    if len(pages) < head.page_count:
        there = {page.page_id for page in pages}
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
    found = {}
    for key, entry in store.get_many(keys).items():
        status = status_or_none(entry)
        if status is not None and status.batch_id == head.batch_id:
            found[keys[key]] = status
    return found


def _row(page: PageInfo, whole: PageStatus | None, log_entries: int) -> Row:
    status = page.status
    long = status if whole is None else vars(whole)
    return {
        "page_id": page.page_id,
        "path": _text(long.get("path")),
        "status": status["status"],
        "uploaded": status.get("uploaded"),
        "completed": status.get("completed"),
        "changes": status.get("changes"),
        "confidence": status.get("confidence"),
        "error": _text(long.get("error")),
        "code": _text(long.get("code")),
        "attempts": status.get("attempts", 0),
        "duration_ms": status.get("duration_ms"),
        "log_entries": log_entries,
        **({"superseded_by": by} if (by := status.get("superseded_by")) else {}),
    }


def _text(text: str | None) -> str | None:
    """A text that a file can hold: metadata of somebody else may have half a surrogate pair."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
