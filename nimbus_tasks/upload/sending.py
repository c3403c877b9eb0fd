"""Sending checked maps as a batch, in an order of writes that can be cut off at any point.

Batch with all its page ids first; then contents, statuses and queue items, a chunk at a time; then
the batch again. Run again, as it was typed or with the batch's id, it sends what is still lacking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.clock import now_iso, to_iso, utc_now
from nimbus_tasks.core.errors import (
    BatchCancelledError,
    InterruptedByUserError,
    NotFoundError,
    StoreError,
    StoreUnreachableError,
)
from nimbus_tasks.core.keys import (
    batch_key,
    new_batch_id,
    page_key,
    status_key,
    status_prefix,
    superseded_key,
)
from nimbus_tasks.core.lifecycle import TERMINAL_PAGE_STATES, Intent
from nimbus_tasks.core.maps import (
    ContentMap,
    Listing,
    RefusedMapError,
    page_value,
    read_map,
    read_map_data,
)
from nimbus_tasks.core.pages import read_statuses
from nimbus_tasks.core.progress import Progress, Silent
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, queue_entry
from nimbus_tasks.kv.store import Entry, KeyValues, Store
from nimbus_tasks.upload.folder import Checked, Rejected
from nimbus_tasks.upload.plan import Plan, plan_upload

#: A step of the upload: what one transaction writes and what memory holds of it at a time.
CHUNK_PAGES, CHUNK_BYTES = 1000, 8 * 1024 * 1024


@dataclass(frozen=True)
class Uploaded:
    """The outcome. ``batch_id`` is ``None`` where nothing was sent and no batch was made,
    ``project_id`` where there is no project yet and a dry run has made none.

    ``taken_over`` pages were in an earlier batch; ``elsewhere`` ones are in a later batch than the
    one that was to be continued, and stay there; ``dropped`` ones had been listed by an upload that
    was cut off, and are in the folder no more. ``resumed``: nobody named the batch that goes on.
    """

    project_id: str | None
    batch_id: str | None
    status: str | None
    page_count: int
    uploaded: int
    skipped: int
    bytes: int
    checked: Checked
    taken_over: int = 0
    elsewhere: int = 0
    dropped: int = 0
    resumed: bool = False
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
            "elsewhere": self.elsewhere,
            "resumed": self.resumed,
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

    Killed and run again, an upload goes on with its batch and ends as if it had not been killed.
    Pages that an earlier batch still holds are taken over from it; it keeps what it had of them.
    ``store`` may be ``None`` for a dry run of a project that has none yet. Raises
    :class:`NotFoundError` for an unknown batch and :class:`UsageError` for one that can take no
    page.
    """
    taken_over = page_count = 0
    with store.snapshot() if store else nullcontext() as reading:
        plan = plan_upload(project, reading, checked.maps, batch=batch, changed=changed)
        if dry_run or reading is None:
            taken_over = plan.taken_over(reading, project.project_id)
            page_count = plan.pages_after(reading)
    head, wanted = plan.head, plan.wanted
    outcome = Uploaded(
        project_id=project.project_id,
        batch_id=head.batch_id if head else None,
        status=None,
        page_count=head.page_count if head else 0,
        uploaded=len(wanted),
        skipped=len(checked.maps) - len(wanted) - plan.elsewhere,
        bytes=sum(content_map.size for content_map in wanted),
        checked=checked,
        elsewhere=plan.elsewhere,
        resumed=head is not None and batch is None,
        dry_run=dry_run,
    )
    if dry_run or store is None:
        return replace(outcome, page_count=page_count, taken_over=taken_over)
    if not wanted and head is None:
        return outcome
    if not wanted and head is not None and head.intent != Intent.UPLOAD:
        return replace(outcome, status=batches.fold(store, head).status(head.intent))
    try:
        return _send(project, store, plan, folder, outcome, progress or Silent())
    except NotFoundError:
        if batch is not None:
            raise
    # Another upload of the same pages took ours for one that was cut off, before it had sent any.
    return upload_maps(project, store, checked, folder, changed=changed, progress=progress)


def _send(
    project: Project,
    store: Store,
    plan: Plan,
    folder: Path,
    outcome: Uploaded,
    progress: Progress,
) -> Uploaded:
    """Batch with all its page ids; contents, statuses and queue by chunks; then batch again."""
    project_id, head = project.project_id, plan.head
    batch_id = _open_batch(store, project, head, plan.wanted)
    store.prefetch(status_prefix(project_id))
    sent = _send_pages(store, project_id, batch_id, plan, folder, progress)
    old_batches = set(sent.taken_from)
    with store.transaction() as tx:
        listed = batches.load(tx, project_id, batch_id)
        closed = _close_batch(tx, listed)
        _close_emptied(tx, project_id, plan.cut_off, listed.pages.keys())
        if head is not None:  # who was killed may have taken pages from any that was open then
            old_batches |= set(plan.open) - set(plan.cut_off)
        for old in old_batches:
            _refresh(tx, project_id, old)
    checked = outcome.checked
    return replace(
        outcome,
        batch_id=batch_id if closed else None,
        status=closed.status if closed else None,
        page_count=closed.page_count if closed else 0,
        uploaded=sent.pages,
        taken_over=sum(sent.taken_from.values()),
        dropped=len(listed.pages) - closed.page_count if closed else 0,
        checked=replace(checked, rejected=[*checked.rejected, *sent.refused]),
    )


@dataclass
class _Sent:
    """Of the pages that were sent: how many, how many of them left which other batch, and the files
    that could not be."""

    pages: int = 0
    taken_from: Counter[str] = field(default_factory=Counter)
    refused: list[Rejected] = field(default_factory=list)


def _send_pages(
    store: Store, project_id: str, batch_id: str, plan: Plan, folder: Path, progress: Progress
) -> _Sent:
    """Contents, statuses and queue, a chunk at a time; none is in memory when this is over."""
    progress.begin("Uploading", len(plan.wanted))
    sent = _Sent()
    try:
        for chunk in _chunks(folder, plan.wanted, project_id, sent.refused):
            with store.transaction() as tx:
                taken_from = _put_pages(tx, project_id, batch_id, chunk, plan.anew)
            sent.pages += len(chunk)
            sent.taken_from += taken_from
            progress.advance(len(chunk))
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            f"interrupted: {sent.pages:,} of {len(plan.wanted):,} pages of {batch_id} are sent",
            advice="Run it again as you typed it, and it goes on.",
        ) from None
    return sent


def _open_batch(
    store: Store, project: Project, head: BatchHead | None, wanted: Sequence[ContentMap]
) -> str:
    """Write the batch record that lists every page, before any page is sent."""
    moment = utc_now()
    page = {"status": "uploaded", "uploaded": to_iso(moment)}
    listed = {content_map.page_id: page for content_map in wanted}
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
) -> Iterator[list[tuple[ContentMap, bytes]]]:
    """Maps with their JSON, read again, a chunk at a time; files that changed since are checked
    again, and ``refused`` if they are usable no more."""
    chunk: list[tuple[ContentMap, bytes]] = []
    size = 0
    for checked_map in wanted:
        try:
            content_map, data = _read_again(folder, checked_map, project_id)
        except RefusedMapError as error:
            refused.append(Rejected(checked_map.file, f"changed while uploading: {error}"))
            continue
        if chunk and (len(chunk) >= CHUNK_PAGES or size + content_map.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((content_map, data))
        size += content_map.size
    if chunk:
        yield chunk


def _read_again(folder: Path, checked_map: ContentMap, project_id: str) -> tuple[ContentMap, bytes]:
    file = checked_map.file
    data, digest = read_map_data(folder, file)
    if digest == checked_map.digest:
        return checked_map, data
    found = read_map(folder, file, project_id)
    if isinstance(found, Listing) or found.page_id != checked_map.page_id:
        raise RefusedMapError("it names another page now")
    data, digest = read_map_data(folder, file)
    if digest != found.digest:
        raise RefusedMapError("somebody is still writing it")
    return found, data


def _put_pages(
    tx: KeyValues,
    project_id: str,
    batch_id: str,
    chunk: Sequence[tuple[ContentMap, bytes]],
    anew: Set[str],
) -> Counter[str]:
    """Write contents, statuses and queue items; returns how many pages left which other batch.

    ``anew`` are pages of this batch whose content has changed. Another page that is found in it has
    been sent by somebody else meanwhile, and may be at work already. Raises :class:`NotFoundError`
    where somebody else has ended the batch as one that has no page.
    """
    if batches.find(tx, project_id, batch_id).intent == Intent.CANCEL:
        raise BatchCancelledError(f"{batch_id} was cancelled while its pages were being sent")
    start = utc_now()
    statuses = read_statuses(tx, project_id, [content_map.page_id for content_map, _ in chunk])
    contents: list[tuple[ContentMap, bytes, str]] = []
    new_statuses: list[Entry] = []
    queue: list[Entry] = []
    superseded: list[Entry] = []
    obsolete: list[str] = []
    taken_from: Counter[str] = Counter()
    for number, (content_map, data) in enumerate(chunk):
        page_id = content_map.page_id
        old = statuses.get(page_id)
        if old is not None and old.batch_id == batch_id and page_id not in anew:
            continue
        # A microsecond apart, so that the queue keeps the order of the files.
        now = to_iso(start + timedelta(microseconds=number))
        contents.append((content_map, data, now))
        status = PageStatus(
            state="queued",
            batch_id=batch_id,
            updated=now,
            path=content_map.source_path,
            uploaded=now,
            priority=NEW_PAGE_PRIORITY,
            queued_at=now,
        )
        if old is not None:
            obsolete.append(superseded_key(project_id, batch_id, page_id))
            if (waiting := old.queue_key(project_id, page_id)) is not None:
                obsolete.append(waiting)
            if old.batch_id not in ("", batch_id):
                taken_from[old.batch_id] += 1
                superseded.append(_superseded(project_id, page_id, old, batch_id))
            status = status.changed(extra=old.extra)
        new_statuses.append(status.entry(status_key(project_id, page_id)))
        queue.append(queue_entry(project_id, page_id, status))
    tx.delete_many(obsolete)
    tx.put_many(superseded)
    # Made one after the other: the texts of a chunk are not in memory together.
    tx.put_many(_page_entry(project_id, batch_id, *content) for content in contents)
    tx.put_many(new_statuses)
    tx.put_many(queue)
    return taken_from


def _page_entry(
    project_id: str, batch_id: str, content_map: ContentMap, data: bytes, now: str
) -> Entry:
    value = page_value(content_map, data.decode(), project_id, batch_id, now)
    meta = {"batch_id": batch_id, "uploaded": now, "sha256": content_map.sha256}
    return Entry(page_key(project_id, content_map.page_id), value, meta)


def _superseded(project_id: str, page_id: str, old: PageStatus, batch_id: str) -> Entry:
    """What the older batch keeps of a page: how it ended there, or that it did not."""
    if old.state not in TERMINAL_PAGE_STATES:
        old = old.as_cancelled(now_iso())
    kept = old.changed(superseded_by=batch_id)
    return kept.entry(superseded_key(project_id, old.batch_id, page_id))


def _close_batch(tx: KeyValues, listed: Batch) -> BatchHead | None:
    """End the uploading: the batch has the pages that were sent, and goes if none was."""
    project_id, batch_id = listed.head.project_id, listed.head.batch_id
    batch = batches.with_pages_there(tx, listed)
    if not batch.pages:
        tx.delete_many([batch_key(project_id, batch_id)])
        return None
    head = batch.head
    if head.intent == Intent.UPLOAD:  # unless somebody has cancelled it meanwhile
        head = replace(head, intent=Intent.RUN.value)
    batches.save_with_snapshot(tx, replace(batch, head=head))
    return batches.find(tx, project_id, batch_id)


def _refresh(tx: KeyValues, project_id: str, batch_id: str) -> None:
    """Write down what a batch is in that may have lost pages to this one."""
    try:
        batches.save_snapshot(tx, project_id, batch_id)
    except StoreUnreachableError:
        raise
    except (NotFoundError, StoreError):
        pass  # its record is gone or damaged, which is verify's to mend


def _close_emptied(tx: KeyValues, project_id: str, cut_off: Sequence[str], taken: Set[str]) -> None:
    """End earlier uploads that were cut off and have nothing left to send: we have ``taken`` it."""
    for batch_id in cut_off:
        try:
            batch = batches.load(tx, project_id, batch_id)
        except NotFoundError:
            continue  # a third upload has ended it
        there = {page.page_id for page in batches.pages_of(tx, batch.head)}
        if batch.head.intent == Intent.UPLOAD and batch.pages.keys() - there <= taken:
            _close_batch(tx, batch)
