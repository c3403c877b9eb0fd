"""Batches: find, load, fold, save.

Folding means adding up what a batch's pages are in, from their own records. What the batch record
says of them is a snapshot, which :func:`save_snapshot` rebuilds.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from sys import intern
from typing import Any, NamedTuple

from nimbus_tasks.core.batch_records import Batch, BatchHead, head_from_metadata, read_batch
from nimbus_tasks.core.clock import iso_after, to_iso
from nimbus_tasks.core.errors import NotFoundError, StoreError, UsageError
from nimbus_tasks.core.keys import (
    batch_key,
    batch_prefix,
    check_id,
    is_id,
    superseded_prefix,
)
from nimbus_tasks.core.lifecycle import Intent, Tally, batch_status, is_finished
from nimbus_tasks.core.pace import UNKNOWN, Pace, pace
from nimbus_tasks.core.pages import (
    PageGroup,
    PageInfo,
    list_groups,
    one_by_one,
    small_statuses,
)
from nimbus_tasks.core.wire import UnreadableRecordError, load_object
from nimbus_tasks.kv.store import Entry, KeyInfo, KeyValues

#: How many failures a look at a batch keeps; the report has them all.
FAILURES_KEPT = 50


class BatchView(NamedTuple):
    """One look at a batch: what it is in, how far, how fast, and what wants attention.

    ``in_flight`` is in the order in which the pages were begun; ``stalled`` are those of it whose
    holder has not been heard of for a whole lease; ``failures`` are the latest
    :data:`FAILURES_KEPT`; ``engine`` is the project's: who takes up queued pages.
    """

    head: BatchHead
    tally: Tally
    status: str
    pace: Pace
    in_flight: Sequence[PageInfo] = ()
    stalled: Sequence[PageInfo] = ()
    failures: Sequence[PageInfo] = ()
    engine: str = "python"

    @property
    def is_finished(self) -> bool:
        """Whether the batch has ended, in whatever state."""
        return is_finished(self.status)

    @property
    def in_flight_by_urgency(self) -> list[PageInfo]:
        """The pages in flight as a person wants to see them: stalled ones first, those that are
        claimed ahead and not begun last; among equals the longest at work first."""
        stalled = {page.page_id for page in self.stalled}
        return sorted(
            self.in_flight,
            key=lambda page: (page.page_id not in stalled, page.status.get("step") is None),
        )

    def to_json(self) -> dict[str, Any]:
        """The document of ``nimbus.batch.status --json``."""
        return {
            "batch_id": self.head.batch_id,
            "project_id": self.head.project_id,
            "status": self.status,
            "created": self.head.created,
            "page_count": self.tally.total,
            "counts": self.tally.counts,
            "summary": self.tally.summary(),
            "finished": self.is_finished,
            "pages_per_second": self.pace.per_second and round(self.pace.per_second, 3),
            "seconds_left": [
                seconds and round(seconds, 1)
                for seconds in (self.pace.seconds_left_low, self.pace.seconds_left_high)
            ],
            "stalled": len(self.stalled),
        }


def heads(store: KeyValues, project_id: str) -> list[BatchHead]:
    """All batches of the project, newest first."""
    found = []
    prefix = batch_prefix(project_id)
    for info in store.scan(prefix):
        batch_id = info.key.removeprefix(prefix)
        if is_id(batch_id):
            found.append(_head_or_stub(store, project_id, batch_id, info))
    return sorted(found, key=lambda head: (head.created, head.batch_id), reverse=True)


def find(store: KeyValues, project_id: str, name: str | None) -> BatchHead:
    """The batch that a person means: a whole id, an unambiguous end of one, ``latest`` or nothing.

    Raises :class:`NotFoundError`, or :class:`UsageError` for what is no id or means several.
    """
    if name is None or name == "latest":
        if not (known := heads(store, project_id)):
            raise NotFoundError("this project has no batch yet", advice="Run: invoke nimbus.upload")
        return known[0]
    check_id(name, "batch")
    info = store.head(batch_key(project_id, name))
    if info is not None:
        return _head_or_stub(store, project_id, name, info)
    known = heads(store, project_id)
    meant = [head for head in known if head.batch_id.endswith(name)]
    if not meant:
        raise NotFoundError(f"no such batch: {name}", advice="See: invoke nimbus.batch.list")
    if len(meant) > 1:
        some = ", ".join(head.batch_id for head in meant[:3])
        raise UsageError(f"{name} can mean {len(meant)} batches: {some}", advice="Give more of it.")
    return meant[0]


def load(store: KeyValues, project_id: str, batch_id: str) -> Batch:
    """A batch with its pages. Raises :class:`NotFoundError`, or :class:`StoreError` if damaged."""
    entry = store.get(batch_key(project_id, batch_id))
    if entry is None:
        raise NotFoundError(f"no such batch: {batch_id}", advice="See: invoke nimbus.batch.list")
    try:
        return read_batch(project_id, batch_id, entry)
    except UnreadableRecordError as error:
        raise StoreError(f"the record of {batch_id} cannot be read: {error}") from error


def pages_of(store: KeyValues, head: BatchHead) -> Iterator[PageInfo]:
    """Every page of the batch that has a status, with the small form of it.

    That is the pages whose status record names this batch, and those that a later batch took over,
    as they were then.
    """
    return one_by_one(groups_of(store, head))


def groups_of(store: KeyValues, head: BatchHead) -> Iterator[PageGroup]:
    """The same, many at a time."""
    count, seen = 0, set[str]()
    for group in list_groups(store, head.project_id, head.batch_id):
        count += len(group.page_ids)
        if store.lag_seconds:  # where transactions are none, a page can be in two batches
            seen.update(group.page_ids)
        yield group
    if count < head.page_count:
        yield from _superseded(store, head.project_id, head.batch_id, seen)


def fold(store: KeyValues, head: BatchHead) -> Tally:
    """What the pages of the batch add up to now."""
    tally = Tally(head.page_count)
    for group in groups_of(store, head):
        tally.add_all(group.columns)
    return tally


def fold_with_states(
    store: KeyValues, head: BatchHead, page_count: int
) -> tuple[Tally, dict[str, str]]:
    """What the pages of the batch add up to now, and what each is in, by page id."""
    tally = Tally(page_count)
    pairs = _counting(groups_of(store, head), tally)
    return tally, {page_id: intern(state) for page_id, state in pairs}


def fold_all(store: KeyValues, project_id: str, among: Iterable[BatchHead]) -> dict[str, Tally]:
    """What the pages of those batches add up to that are still open, by one listing for all.

    Nothing changes an ended batch unasked, and whoever changes it marks its record first: what the
    record of such a one says is right.
    """
    tallies = {head.batch_id: Tally(head.page_count) for head in among if not head.is_final}
    if not tallies:
        return {}
    seen: dict[str, set[str]] = {batch_id: set() for batch_id in tallies}
    for some in list_groups(store, project_id):
        for batch_id in some.values("batch_id") & tallies.keys():
            group = some.where("batch_id", batch_id)
            tallies[batch_id].add_all(group.columns)
            if store.lag_seconds:
                seen[batch_id].update(group.page_ids)
    for batch_id, tally in tallies.items():
        if tally.seen < tally.page_count:
            for group in _superseded(store, project_id, batch_id, seen[batch_id]):
                tally.add_all(group.columns)
    return tallies


def _superseded(
    store: KeyValues, project_id: str, batch_id: str, but: Set[str]
) -> Iterator[PageGroup]:
    """The pages that a later batch took over, ``but`` those that are still in this one: where an
    upload was killed on a store without transactions, a page can be in both."""
    for group in small_statuses(store, superseded_prefix(project_id, batch_id)):
        is_double = not but.isdisjoint(group.page_ids)
        yield PageGroup.of(p for p in group.pages if p.page_id not in but) if is_double else group


def look(store: KeyValues, head: BatchHead, now: datetime, *, engine: str = "python") -> BatchView:
    """One look at the batch, folded from its pages."""
    return look_at(groups_of(store, head), head, now, engine=engine)


def look_at(
    groups: Iterable[PageGroup], head: BatchHead, now: datetime, *, engine: str = "python"
) -> BatchView:
    """One look at the batch, folded from its pages, which somebody has read already."""
    tally = Tally(head.page_count)
    in_flight: list[PageInfo] = []
    latest_failures: list[tuple[str, str, PageInfo]] = []
    for group in groups:
        tally.add_all(group.columns)
        in_flight += group.where("status", "processing").pages
        for page in group.where("status", "failed").pages:
            item = (page.status.get("completed") or "", page.page_id, page)
            if len(latest_failures) < FAILURES_KEPT:
                heapq.heappush(latest_failures, item)
            else:
                heapq.heappushpop(latest_failures, item)
    in_flight.sort(key=lambda page: (page.status.get("started") or "", page.page_id))
    stalled = [page for page in in_flight if page.has_lapsed(to_iso(now))]
    return BatchView(
        head=head,
        tally=tally,
        status=tally.status(head.intent),
        # Where nobody is at work, how fast somebody was says nothing of what is left.
        pace=pace(tally, now) if len(in_flight) > len(stalled) else UNKNOWN,
        in_flight=in_flight,
        stalled=stalled,
        failures=[page for _, _, page in sorted(latest_failures, reverse=True)],
        engine=engine,
    )


def cancelled_batches(tx: KeyValues, project_id: str, batch_ids: Collection[str]) -> set[str]:
    """Those of the batches for which a cancel has been asked."""
    cancelled = set()
    for batch_id in batch_ids:
        info = tx.head(batch_key(project_id, batch_id))
        if info is None:
            continue
        head = head_from_metadata(project_id, batch_id, info)
        if head is None and (entry := tx.get(info.key)) is not None:
            head = _head_from_value(project_id, batch_id, entry)
        if head is not None and head.intent == Intent.CANCEL:
            cancelled.add(batch_id)
    return cancelled


def _head_from_value(project_id: str, batch_id: str, entry: Entry) -> BatchHead | None:
    try:
        return read_batch(project_id, batch_id, entry).head
    except UnreadableRecordError:
        return None


def with_pages_there(tx: KeyValues, batch: Batch) -> Batch:
    """The batch with the pages that have a status in it, and without those that were only listed:
    an upload that was cut off had announced them and never sent them."""
    pages: Mapping[str, Mapping[str, Any]] = batch.pages
    there, others = 0, 0
    for group in groups_of(tx, batch.head):
        listed = sum(page_id in pages for page_id in group.page_ids)
        there, others = there + listed, others + len(group.page_ids) - listed
    # Nearly always it is all of them, and of 100,000 pages no other dictionary is made then.
    if others or there < len(pages):
        pages = {
            page.page_id: pages.get(page.page_id, {"uploaded": page.status.get("uploaded")})
            for page in pages_of(tx, batch.head)
        }
    return replace(batch, head=replace(batch.head, page_count=len(pages)), pages=pages)


def save_snapshot(tx: KeyValues, project_id: str, batch_id: str) -> str:
    """Rebuild what the batch record says of its pages; returns the status. Within a transaction."""
    return save_with_snapshot(tx, load(tx, project_id, batch_id), was_read=True)


def save_begun(
    tx: KeyValues, project_id: str, batch_id: str, page_ids: Collection[str]
) -> str | None:
    """Write down that those queued pages are at work, without a listing of the others: who reads
    batch records only sees that work has begun. Returns the status; ``None`` where the record does
    not say what the pages were in."""
    batch = load(tx, project_id, batch_id)
    if tx.lag_seconds and batch.head.intent == Intent.CANCEL:
        return None  # nobody claims of a cancelled batch: a retry may be missing in it
    counts = dict(batch.head.counts)
    begun = [i for i in page_ids if batch.pages.get(i, {}).get("status") == "queued"]
    if counts.get("queued", 0) < len(begun) or len(begun) < len(page_ids):
        return None
    counts["queued"] -= len(begun)
    counts["processing"] += len(begun)
    status = batch_status(batch.head.intent, counts).value
    at_work = {page_id: {**batch.pages[page_id], "status": "processing"} for page_id in begun}
    head = replace(batch.head, status=status, counts=counts)
    tx.put_many([replace(batch, head=head, pages={**batch.pages, **at_work}).entry()])
    return status


def save_with_snapshot(tx: KeyValues, batch: Batch, *, was_read: bool = False) -> str:
    """Write a batch record with what its pages add up to now; returns the status. One that
    ``was_read`` and not changed is left as it is where it may be an old one."""
    tally = Tally(len(batch.pages))
    pages = batch.pages_in(_counting(groups_of(tx, batch.head), tally))
    status = tally.status(batch.head.intent)
    if not (was_read and _may_be_old(tx, batch.head.intent, tally)):
        tx.put_many([batch.with_snapshot(tally, status, pages).entry()])
    return status


def _may_be_old(tx: KeyValues, intent: str, tally: Tally) -> bool:
    """Whether a batch record may be one of before something else was asked: written again, it would
    undo that, and be believed by all who claim.

    An upload may have ended that is not seen to have. Cancel and retry mark the record first, and
    then write the pages: those tell of them, where they were written so lately that the record may
    not be seen yet.
    """
    if not tx.lag_seconds:
        return False
    fresh = iso_after(-tx.lag_seconds)
    if intent == Intent.RUN:
        has_cancelled = tally.states["cancelled"] > tally.superseded
        return has_cancelled and tally.last_changes["cancelled"] > fresh
    if intent == Intent.CANCEL:
        return tally.last_changes.get("queued", "") > fresh
    return intent == Intent.UPLOAD


def _counting(groups: Iterable[PageGroup], tally: Tally) -> Iterator[tuple[str, str]]:
    """Each page's id and state; ``tally`` counts them on the way."""
    for group in groups:
        tally.add_all(group.columns)
        yield from zip(group.page_ids, [status["status"] for status in group.statuses], strict=True)


def stub(project_id: str, batch_id: str) -> BatchHead:
    """The head of a batch whose record is gone or damaged: it is counted by its pages."""
    return BatchHead(batch_id, project_id, "", 0, "unreadable", Intent.RUN.value)


def is_readable(entry: Entry) -> bool:
    """Whether a batch record's value can be read."""
    try:
        load_object(entry)
    except UnreadableRecordError:
        return False
    return True


def _head_or_stub(store: KeyValues, project_id: str, batch_id: str, info: KeyInfo) -> BatchHead:
    """The head; one that cannot be read must not hide the others."""
    head = head_from_metadata(project_id, batch_id, info)
    if head is not None:
        return head
    try:
        return load(store, project_id, batch_id).head
    except StoreError:
        return stub(project_id, batch_id)
