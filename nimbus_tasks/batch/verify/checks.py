"""What verify looks for. Each check yields what it finds, and puts it right with ``repair``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.clock import iso_after, now_iso, utc_now
from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.keys import (
    batch_key,
    is_id,
    last_part,
    page_key,
    page_prefix,
    status_key,
)
from nimbus_tasks.core.lapses import take_up_lapsed
from nimbus_tasks.core.lifecycle import Intent, Tally, is_finished
from nimbus_tasks.core.pages import PageInfo, in_groups, list_pages, read_statuses, status_entries
from nimbus_tasks.core.queue import find_unqueued, is_newer, put_back, put_in_queue, queue_items
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus
from nimbus_tasks.core.small_forms import status_from_metadata
from nimbus_tasks.core.wire import load_object, mapping_field
from nimbus_tasks.kv.store import KeyValues

#: The kind of a page that was never sent: the upload has to go on, no repair can.
NOT_SENT = "not_uploaded"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a page, or with the batch where ``page_id`` is ``None``."""

    kind: str
    detail: str
    page_id: str | None = None
    repaired: bool = False
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        """An item of the document's findings."""
        return {
            "kind": self.kind,
            "page_id": self.page_id,
            "path": self.path,
            "detail": self.detail,
            "repaired": self.repaired,
        }


def check_batches(tx: KeyValues, project_id: str, repair: bool) -> Iterator[Finding]:
    """Every page belongs to a batch that has a record which can be read."""
    sizes: dict[str, int] = defaultdict(int)
    for page in list_pages(tx, project_id):
        sizes[page.status["batch_id"]] += 1
    known = {head.batch_id: head for head in batches.heads(tx, project_id)}
    for batch_id in sorted({*sizes, *known}):
        if not is_id(batch_id):
            continue
        head = known.get(batch_id, batches.stub(project_id, batch_id))
        what = "has no record"
        if batch_id in known:
            try:
                batches.load(tx, project_id, batch_id)
                continue
            except StoreError:
                what = "has a record that cannot be read"
        detail = f"{batch_id}, to which {sizes[batch_id]:,} pages belong, {what}"
        yield Finding("no_batch_record", detail, None, repair)
        if repair:
            tx.put_many([Batch(_without_count(head), {}).entry()])
            batch = batches.load(tx, project_id, batch_id)
            tx.put_many([batches.with_pages_there(tx, batch).entry()])
            batches.save_snapshot(tx, project_id, batch_id)


def _without_count(head: BatchHead) -> BatchHead:
    # More than there can be, so that pages which later batches have taken over are looked for, too.
    return replace(head, created=head.created or now_iso(), page_count=10**9)


def check_statuses(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Every status record can be read: its value, not only its metadata."""
    project_id = head.project_id
    damaged: dict[str, PageInfo] = {}
    for some in in_groups(list_pages(tx, project_id, head.batch_id)):
        listed = {page.page_id: page for page in some}
        readable = read_statuses(tx, project_id, listed).keys()
        damaged |= {page_id: listed[page_id] for page_id in listed.keys() - readable}
    for page_id in sorted(damaged):
        detail = "its status record is damaged, and its metadata is not"
        yield Finding("unreadable", detail, page_id, repair, damaged[page_id].status.get("path"))
    if repair:
        anew = {i: status_from_metadata(page.status) for i, page in damaged.items()}
        at_work = {i: s for i, s in anew.items() if s.state in ("queued", "processing")}
        tx.put_many(status_entries(project_id, {i: anew[i] for i in anew.keys() - at_work.keys()}))
        # Nobody can finish a claim whose token is lost.
        put_in_queue(tx, project_id, at_work)


def check_queue(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Queued pages and queue items belong together, one to one."""
    project_id = head.project_id
    strays = []
    items = [info.key for info in queue_items(tx, project_id)]
    for some in in_groups(items):
        statuses = read_statuses(tx, project_id, {last_part(key) for key in some})
        for key in some:
            page_id = last_part(key)
            status = statuses.get(page_id)
            if (fault := _fault_of_item(tx, project_id, key, status)) is not None:
                strays.append(key)
                detail = f"a queue item that will not be worked on: {fault}"
                path = status.path if status else None
                yield Finding("stray_queue_item", detail, page_id, repair, path)
    pages = list_pages(tx, project_id, head.batch_id)
    missing = find_unqueued(tx, project_id, pages, utc_now())
    if missing and tx.hidden_items() is not None and _is_at_work(tx, project_id):
        missing = {}  # a page that is still seen as queued may have been worked on
    for page_id, status in missing.items():
        yield Finding("not_in_queue", "queued, and in no queue", page_id, repair, status.path)
    if repair:
        tx.delete_many(strays)
        put_back(tx, project_id, missing)


def _is_at_work(tx: KeyValues, project_id: str) -> bool:
    """Whether a worker has done something within twice the lag, as far as reads show it already."""
    since = iso_after(-2 * tx.lag_seconds)
    return any(
        page.status["status"] in ("processing", "done", "failed")
        and (page.status.get("updated") or "") > since
        for page in list_pages(tx, project_id)
    )


def _fault_of_item(
    tx: KeyValues, project_id: str, key: str, status: PageStatus | None
) -> str | None:
    """Why a queue item will not be worked on; ``None`` if it will be, or nobody can tell yet."""
    page_id = last_part(key)
    if tx.memory_seconds and is_newer(key, iso_after(-tx.memory_seconds)):
        return None  # its status may not be seen yet, or the item itself may be gone by now
    if status is None:
        if is_id(page_id) and tx.head(status_key(project_id, page_id)) is not None:
            return None  # it is damaged, and its item is what it can be made anew from
        return "there is no such page"
    if status.state != "queued":
        return f"the page is {status.state}"
    if status.queue_key(project_id, page_id) in (None, key):
        return None
    return "it is a second item of the same page"


def check_claims(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Nobody holds a page longer than the lease."""
    now = utc_now()
    stuck = batches.look(tx, head, now).stalled
    if repair:
        take_up_lapsed(tx, head.project_id, [page.page_id for page in stuck], now)
    for page in stuck:
        since = page.status.get("lease") or page.status.get("updated")
        detail = f"its worker has not been heard of since {since}"
        yield Finding("stalled", detail, page.page_id, repair, page.status.get("path"))


def check_contents(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Every page that is still to be worked on has content."""
    prefix = page_prefix(head.project_id)
    there = {info.key.removeprefix(prefix) for info in tx.scan(prefix)}
    for page in batches.pages_of(tx, head):
        waits = page.status["status"] in ("queued", "processing")
        if waits and page.page_id not in there:
            detail = "its content is not in the store: upload it again"
            yield Finding("no_content", detail, page.page_id, path=page.status.get("path"))


def check_listing(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """The batch lists the pages that are in it, and no others; an upload has come to its end."""
    try:
        batch = batches.load(tx, head.project_id, head.batch_id)
    except StoreError:
        return  # said by check_batches
    there, unlisted = set(), []
    for page in batches.pages_of(tx, head):
        there.add(page.page_id)
        if page.page_id not in batch.pages:
            unlisted.append(page)
    lost = sorted(batch.pages.keys() - there)
    if lost and tx.lag_seconds and head.created > iso_after(-tx.lag_seconds):
        detail = f"{len(lost):,} pages cannot be seen yet: look again in a minute"
        yield Finding("not_seen_yet", detail)
        return
    if head.intent == Intent.UPLOAD:
        yield from (Finding(NOT_SENT, "listed and not sent", page_id) for page_id in lost)
        if not lost:
            detail = "all its pages are there, and its upload has not come to its end"
            yield Finding("upload_cut_off", detail, None, repair)
        if repair and not lost:
            _close(tx, batch)
        return
    detail = "listed, and has no status record that can be read"
    yield from (Finding("no_status", detail, page_id, repair) for page_id in lost)
    detail = "belongs to the batch, which does not list it"
    for page in sorted(unlisted, key=lambda page: page.page_id):
        yield Finding("unlisted", detail, page.page_id, repair, page.status.get("path"))
    counted = batch.head.page_count
    if counted != len(batch.pages) and not lost and not unlisted:
        detail = f"the batch record counts {counted:,} pages and lists {len(batch.pages):,}"
        yield Finding("page_count", detail, None, repair)
    if repair and (unlisted or lost or counted != len(batch.pages)):
        _queue_anew(tx, head, lost)
        tx.put_many([batches.with_pages_there(tx, batch).entry()])


def _close(tx: KeyValues, batch: Batch) -> None:
    closed = replace(batch.head, intent=Intent.RUN.value)
    tx.put_many([batches.with_pages_there(tx, replace(batch, head=closed)).entry()])


def _queue_anew(tx: KeyValues, head: BatchHead, page_ids: list[str]) -> None:
    """Make the status records of pages whose content this batch has brought; the others have
    nothing to work on, and leave the batch."""
    now = now_iso()
    fresh = {}
    for page_id in page_ids:
        info = tx.head(page_key(head.project_id, page_id))
        if info is not None and (info.metadata or {}).get("batch_id") == head.batch_id:
            status = PageStatus(state="queued", batch_id=head.batch_id, updated=now)
            fresh[page_id] = status.as_queued(NEW_PAGE_PRIORITY, now)
    items = [info.key for info in queue_items(tx, head.project_id)]
    tx.delete_many(key for key in items if last_part(key) in fresh)
    put_in_queue(tx, head.project_id, fresh)


def check_snapshot(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """What the batch record says of an ended batch is what its pages say."""
    tally, states = batches.fold_with_states(tx, head, head.page_count)
    status = tally.status(head.intent)
    if not head.is_final and not is_finished(status):
        return  # of a batch at work the record says how it stood a while ago
    if not head.is_final and tx.lag_seconds and _is_at_work(tx, head.project_id):
        return  # whoever did its last page is about to write it, or it is not seen yet
    record = tx.get(batch_key(head.project_id, head.batch_id))
    if record is None or not batches.is_readable(record):
        return  # said by check_batches
    is_right = (head.status, dict(head.counts) or tally.counts) == (status, tally.counts)
    if not (is_right and _agrees(load_object(record), status, tally, states)):
        detail = f"the batch record says {head.status}, its pages say {status}"
        if head.status == status:
            detail = "the batch record says something else than its pages"
        yield Finding("drift", detail, None, repair)
        if repair:
            batches.save_snapshot(tx, head.project_id, head.batch_id)


def _agrees(value: Mapping[str, Any], status: str, tally: Tally, states: Mapping[str, str]) -> bool:
    """Whether the record's value, which is all that the seed's programs read, says the same."""
    pages, summary = mapping_field(value.get("pages")), mapping_field(value.get("summary"))
    said = {page_id: mapping_field(page).get("status") for page_id, page in pages.items()}
    counted = {name: tally.summary()[name] for name in ("completed", "failed", "pending")}
    return (
        (value.get("status"), value.get("page_count")) == (status, tally.total)
        and said == states
        and {name: summary.get(name) for name in counted} == counted
    )


#: What is looked for in a batch, in this order: later checks read what earlier ones have mended.
BATCH_CHECKS = (
    check_statuses,
    check_queue,
    check_claims,
    check_contents,
    check_listing,
    check_snapshot,
)
