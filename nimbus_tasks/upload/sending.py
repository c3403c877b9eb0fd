"""Sending checked maps as a batch, in an order of writes that can be cut off at any point.

Batch with all its page ids first; then contents, statuses and queue items, a chunk at a time; then
the batch again. Run again with the batch's id, it sends what is still lacking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.claims import cancelled_batches
from nimbus_tasks.core.clock import now_iso, to_iso, utc_now
from nimbus_tasks.core.errors import (
    BatchCancelledError,
    InterruptedByUserError,
    NotFoundError,
    UsageError,
)
from nimbus_tasks.core.keys import (
    batch_key,
    last_part,
    new_batch_id,
    page_key,
    page_prefix,
    status_key,
    status_prefix,
    superseded_key,
)
from nimbus_tasks.core.lifecycle import TERMINAL_PAGE_STATES, Intent, batch_status
from nimbus_tasks.core.maps import (
    ContentMap,
    Listing,
    RefusedMapError,
    page_value,
    read_map,
    read_map_text,
    text_sha256,
)
from nimbus_tasks.core.pages import read_statuses
from nimbus_tasks.core.progress import Progress, Silent
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, queue_entry
from nimbus_tasks.kv.store import Entry, KeyValues, Store
from nimbus_tasks.upload.folder import Checked, Rejected

#: A step of the upload: what one transaction writes and what memory holds of it at a time.
CHUNK_PAGES, CHUNK_BYTES = 500, 8 * 1024 * 1024


@dataclass(frozen=True)
class Uploaded:
    """The outcome. ``batch_id`` is ``None`` where nothing was to be sent and no batch was made."""

    project_id: str
    batch_id: str | None
    status: str | None
    page_count: int
    uploaded: int
    skipped: int
    bytes: int
    taken_over: int
    dropped: int
    checked: Checked
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        document: dict[str, Any] = {
            "batch_id": self.batch_id,
            "project_id": self.project_id,
            "status": self.status,
            "page_count": self.page_count,
            "uploaded": self.uploaded,
            "skipped": self.skipped,
            "rejected": [{"file": r.file, "error": r.error} for r in self.checked.rejected],
            "listings": list(self.checked.listings),
            "bytes": self.bytes,
            "taken_over": self.taken_over,
        }
        return document | ({"dry_run": True} if self.dry_run else {})


def upload_maps(
    project: Project,
    store: Store | None,
    checked: Checked,
    folder: Path,
    *,
    batch: str | None = None,
    changed: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Uploaded:
    """Send the checked maps of ``folder`` as a new batch, or what ``batch`` still lacks of them.

    ``store`` may be ``None`` for a dry run of a project that has none yet. Pages that another
    batch still holds are taken over from it; it keeps what it had of them. Raises
    :class:`NotFoundError` for an unknown batch and :class:`UsageError` for a cancelled one.
    """
    head = _batch_to_continue(store, project, batch)
    wanted = checked.maps
    if store is not None and (changed or head):
        wanted = _lacking(store, project.project_id, checked.maps, head)
    outcome = Uploaded(
        project_id=project.project_id,
        batch_id=head.batch_id if head else None,
        status=None,
        page_count=head.page_count if head else 0,
        uploaded=len(wanted),
        skipped=len(checked.maps) - len(wanted),
        bytes=sum(content_map.size for content_map in wanted),
        taken_over=0,
        dropped=0,
        checked=checked,
        dry_run=dry_run,
    )
    if dry_run or store is None:
        return replace(outcome, page_count=_pages_after(store, project, head, wanted))
    if not wanted and head is None:
        return outcome
    if not wanted and head is not None and head.intent != Intent.UPLOAD:
        counts = batches.fold(store, head).counts
        return replace(outcome, status=batch_status(head.intent, counts).value)
    return _send(project, store, head, wanted, folder, outcome, progress or Silent())


def _batch_to_continue(
    store: Store | None, project: Project, batch: str | None
) -> BatchHead | None:
    if batch is None:
        return None
    if store is None:
        raise NotFoundError(f"no such batch: {batch}", advice="This project has no batch yet.")
    head = batches.find(store, project.project_id, batch)
    if head.intent == Intent.CANCEL:
        raise UsageError(
            f"{head.batch_id} was cancelled and takes no more pages",
            advice="Bring it back with: invoke nimbus.batch.retry --include-cancelled"
            f" --batch={head.batch_id}, or upload without --batch.",
        )
    return head


def _lacking(
    store: Store, project_id: str, maps: Sequence[ContentMap], head: BatchHead | None
) -> list[ContentMap]:
    """The maps whose page is not there with this content: in that batch, or else in any."""
    stored = {
        last_part(info.key): (info.metadata or {}).get("sha256")
        for info in store.scan(page_prefix(project_id))
    }
    # A page that has content and no status was cut off in the middle of its upload.
    if head is None:
        there = {last_part(info.key) for info in store.scan(status_prefix(project_id))}
    else:
        # Pages that a later batch took over count as there: this batch has ended with them.
        there = {page.page_id for page in batches.pages_of(store, head)}
    return [m for m in maps if m.page_id not in there or stored.get(m.page_id) != m.sha256]


def _pages_after(
    store: Store | None, project: Project, head: BatchHead | None, wanted: Sequence[ContentMap]
) -> int:
    if store is None or head is None:
        return len(wanted)
    listed = batches.load(store, project.project_id, head.batch_id).pages
    return len(listed.keys() | {content_map.page_id for content_map in wanted})


def _send(
    project: Project,
    store: Store,
    head: BatchHead | None,
    wanted: Sequence[ContentMap],
    folder: Path,
    outcome: Uploaded,
    progress: Progress,
) -> Uploaded:
    """Batch with all its page ids; contents, statuses and queue by chunks; then batch again."""
    batch_id = _open_batch(store, project, head, wanted)
    progress.begin("Uploading", len(wanted))
    sent, taken_over, old_batches = 0, 0, set[str]()
    refused: list[Rejected] = []
    try:
        for chunk in _chunks(folder, wanted, project.project_id, refused):
            with store.transaction() as tx:
                taken_from = _put_pages(tx, project.project_id, batch_id, chunk)
            sent += len(chunk)
            taken_over += sum(taken_from.values())
            old_batches |= taken_from.keys()
            progress.advance(len(chunk))
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            f"interrupted: {sent:,} of {len(wanted):,} pages are sent",
            advice=f"Go on with: invoke nimbus.upload --batch={batch_id}",
        ) from None
    with store.transaction() as tx:
        dropped = _close_batch(tx, project.project_id, batch_id)
        status = batches.save_snapshot(tx, project.project_id, batch_id)
        for old in old_batches:
            batches.save_snapshot(tx, project.project_id, old)
        page_count = batches.find(tx, project.project_id, batch_id).page_count
    checked = outcome.checked
    return replace(
        outcome,
        batch_id=batch_id,
        status=status,
        page_count=page_count,
        uploaded=sent,
        taken_over=taken_over,
        dropped=dropped,
        checked=replace(checked, rejected=[*checked.rejected, *refused]),
    )


def _open_batch(
    store: Store, project: Project, head: BatchHead | None, wanted: Sequence[ContentMap]
) -> str:
    """Write the batch record that lists every page, before any page is sent."""
    moment = utc_now()
    listed = {m.page_id: {"status": "uploaded", "uploaded": to_iso(moment)} for m in wanted}
    with store.transaction() as tx:
        if head is not None:
            batch = batches.load(tx, project.project_id, head.batch_id)
            pages = {**batch.pages, **{k: v for k, v in listed.items() if k not in batch.pages}}
            opened = replace(batch, pages=pages)
            head = replace(batch.head, page_count=len(pages), counts={})
        else:
            head = BatchHead(
                batch_id=_free_batch_id(tx, project.project_id),
                project_id=project.project_id,
                created=to_iso(moment),
                page_count=len(listed),
                status="uploading",
                intent=Intent.UPLOAD.value,
            )
            opened = Batch(head, listed, {"name": project.name})
        uploading = replace(head, status="uploading", intent=Intent.UPLOAD.value)
        tx.put_many([replace(opened, head=uploading).entry()])
    return head.batch_id


def _free_batch_id(tx: KeyValues, project_id: str) -> str:
    moment, taken = utc_now(), 0
    while tx.head(batch_key(project_id, new_batch_id(moment, taken))) is not None:
        taken += 1
    return new_batch_id(moment, taken)


def _chunks(
    folder: Path, wanted: Sequence[ContentMap], project_id: str, refused: list[Rejected]
) -> Iterator[list[tuple[ContentMap, str]]]:
    """Maps with their texts, read again, a chunk at a time; files that changed since are checked
    again, and ``refused`` if they are usable no more."""
    chunk: list[tuple[ContentMap, str]] = []
    size = 0
    for checked_map in wanted:
        try:
            content_map, text = _read_again(folder, checked_map, project_id)
        except RefusedMapError as error:
            refused.append(Rejected(checked_map.file, f"changed while uploading: {error}"))
            continue
        if chunk and (len(chunk) >= CHUNK_PAGES or size + content_map.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((content_map, text))
        size += content_map.size
    if chunk:
        yield chunk


def _read_again(folder: Path, checked_map: ContentMap, project_id: str) -> tuple[ContentMap, str]:
    path = folder / checked_map.file
    text = read_map_text(path, folder)
    if text_sha256(text) == checked_map.sha256:
        return checked_map, text
    found = read_map(path, folder, project_id)
    if isinstance(found, Listing) or found.page_id != checked_map.page_id:
        raise RefusedMapError("it names another page now")
    text = read_map_text(path, folder)
    if text_sha256(text) != found.sha256:
        raise RefusedMapError("somebody is still writing it")
    return found, text


def _put_pages(
    tx: KeyValues, project_id: str, batch_id: str, chunk: Sequence[tuple[ContentMap, str]]
) -> Mapping[str, int]:
    """Write contents, statuses and queue items; returns how many pages left which other batch."""
    if cancelled_batches(tx, project_id, [batch_id]):
        raise BatchCancelledError(f"{batch_id} was cancelled while its pages were being sent")
    start = utc_now()
    statuses = read_statuses(tx, project_id, [content_map.page_id for content_map, _ in chunk])
    contents: list[Entry] = []
    new_statuses: list[Entry] = []
    queue: list[Entry] = []
    superseded: list[Entry] = []
    obsolete: list[str] = []
    taken_from: dict[str, int] = defaultdict(int)
    for number, (content_map, text) in enumerate(chunk):
        page_id = content_map.page_id
        # A microsecond apart, so that the queue keeps the order of the files.
        now = to_iso(start + timedelta(microseconds=number))
        value = page_value(content_map, text, project_id, batch_id, now)
        meta = {"batch_id": batch_id, "uploaded": now, "sha256": content_map.sha256}
        contents.append(Entry(page_key(project_id, page_id), value, meta))
        status = PageStatus(
            state="queued",
            batch_id=batch_id,
            updated=now,
            path=content_map.source_path,
            uploaded=now,
            priority=NEW_PAGE_PRIORITY,
            queued_at=now,
        )
        old = statuses.get(page_id)
        if old is not None:
            obsolete.append(superseded_key(project_id, batch_id, page_id))
            if (waiting := old.queue_key(project_id, page_id)) is not None:
                obsolete.append(waiting)
            if old.batch_id not in ("", batch_id):
                taken_from[old.batch_id] += 1
                superseded.append(_superseded(project_id, page_id, old, batch_id))
            status = replace(status, extra=old.extra)
        new_statuses.append(status.entry(status_key(project_id, page_id)))
        queue.append(queue_entry(project_id, page_id, status))
    tx.delete_many(obsolete)
    tx.put_many(superseded)
    tx.put_many(contents)
    tx.put_many(new_statuses)
    tx.put_many(queue)
    return taken_from


def _superseded(project_id: str, page_id: str, old: PageStatus, batch_id: str) -> Entry:
    """What the older batch keeps of a page: how it ended there, or that it did not."""
    if old.state not in TERMINAL_PAGE_STATES:
        old = old.as_cancelled(now_iso())
    kept = replace(old, superseded_by=batch_id)
    return kept.entry(superseded_key(project_id, old.batch_id, page_id))


def _close_batch(tx: KeyValues, project_id: str, batch_id: str) -> int:
    """End the uploading; returns how many pages went that an earlier, cut off upload had listed and
    that are not in the folder any more."""
    listed = batches.load(tx, project_id, batch_id)
    batch = batches.with_pages_there(tx, listed)
    head = batch.head
    if head.intent == Intent.UPLOAD:  # unless somebody has cancelled it meanwhile
        head = replace(head, intent=Intent.RUN.value)
    tx.put_many([replace(batch, head=head).entry()])
    return len(listed.pages.keys() - batch.pages.keys())
