"""A report's rows: one object a page, as the JSON file has them and every other form takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from sys import intern
from typing import Any, NamedTuple

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.keys import status_key, superseded_key
from nimbus_tasks.core.logs import log_counts
from nimbus_tasks.core.pages import PageGroup, in_groups, status_or_none
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues

Row = Mapping[str, Any]
#: The fields of a row, in their order. The last four are only in rows that have them: of pages that
#: a later batch has, and of those whose processor counts tokens.
FIELDS = (
    "page_id", "path", "status", "uploaded", "completed", "changes", "confidence", "error", "code",
    "attempts", "duration_ms", "log_entries", "superseded_by", "tokens_in", "tokens_out", "cost",
)  # fmt: skip
_WHERE_THERE = ("superseded_by", "tokens_in", "tokens_out", "cost")
_PAGES_A_READ = 500
_NEVER_SENT = {"status": "uploaded"}


class Kept(NamedTuple):
    """What a row needs of a page's listing; they sort by name. All pages of a batch are in memory
    at once to be sorted: as such tuples they take half of the memory that their listing would."""

    name: str
    page_id: str
    path: str | None
    status: str
    uploaded: str | None
    completed: str | None
    changes: int | None
    confidence: float | None
    error: str | None
    code: str | None
    attempts: int
    duration_ms: int | None
    superseded_by: str | None
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None


def keeping(groups: Iterable[PageGroup], kept: list[Kept]) -> Iterator[PageGroup]:
    """The same groups; on the way, what the rows need of their pages is added to ``kept``."""
    for group in groups:
        kept += _kept(group.page_ids, group.statuses)
        yield group


def _kept(page_ids: Sequence[str], statuses: Sequence[Mapping[str, Any]]) -> Iterator[Kept]:
    # A field at a time, which takes half of what it takes page by page.
    found: dict[str, list[Any]] = {
        field: [status.get(field) for status in statuses] for field in Kept._fields[2:]
    }
    found["status"] = [intern(state) for state in found["status"]]
    found["attempts"] = [attempts or 0 for attempts in found["attempts"]]
    names = [path or page_id for path, page_id in zip(found["path"], page_ids, strict=True)]
    return map(Kept, names, page_ids, *found.values())


def report_rows(store: KeyValues, head: BatchHead, pages: list[Kept]) -> Iterator[list[Row]]:
    """One row a page, in the order of their paths, some hundreds at a time. ``pages`` are the pages
    of the batch that have a status, and are sorted here; those that it only lists come last."""
    logged = log_counts(store, head.project_id)
    pages.sort()
    remaining = iter(pages)
    while chunk := list(islice(remaining, _PAGES_A_READ)):
        whole = _whole_records(store, head, chunk)
        yield [_row(p, whole.get(p.page_id), logged.get(p.page_id, 0)) for p in chunk]
    if len(pages) < head.page_count:
        there = {page.page_id for page in pages}
        listed = batches.load(store, head.project_id, head.batch_id).pages
        for some in in_groups(sorted(listed.keys() - there)):
            yield [_row(page, None, 0) for page in _kept(some, [_NEVER_SENT] * len(some))]


def _whole_records(store: KeyValues, head: BatchHead, pages: list[Kept]) -> dict[str, PageStatus]:
    """The records, by page id, of pages whose listing has only the beginning of a long text."""
    project_id = head.project_id
    keys = {
        superseded_key(project_id, head.batch_id, page.page_id)
        if page.superseded_by
        else status_key(project_id, page.page_id): page.page_id
        for page in pages
        if page.name.endswith("…") or (page.status == "failed" and not _tells_error(page))
    }
    listed = {page.page_id: (head.batch_id, page.status) for page in pages}
    found = {}
    for key, entry in store.get_many(keys).items():
        status = status_or_none(entry)
        # Where reads lag, the record may be older than the listing, and says nothing of its error.
        if status is not None and (status.batch_id, status.state) == listed[keys[key]]:
            found[keys[key]] = status
    return found


def _tells_error(page: Kept) -> bool:
    """Whether the listing has the whole error: its writer may have left it out or cut it."""
    return all(text is not None and not text.endswith("…") for text in (page.error, page.code))


def _row(page: Kept, whole: PageStatus | None, log_entries: int) -> Row:
    texts = page if whole is None else whole
    row: dict[str, Any] = {
        "page_id": page.page_id,
        "path": _text(texts.path),
        "status": page.status,
        "uploaded": page.uploaded,
        "completed": page.completed,
        "changes": page.changes,
        "confidence": page.confidence,
        "error": _text(texts.error),
        "code": _text(texts.code),
        "attempts": page.attempts,
        "duration_ms": page.duration_ms,
        "log_entries": log_entries,
    }
    for name in _WHERE_THERE:
        if (value := getattr(page, name)) is not None:
            row[name] = value
    return row


def _text(text: str | None) -> str | None:
    """A text that a file can hold: metadata of somebody else may have half a surrogate pair."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
