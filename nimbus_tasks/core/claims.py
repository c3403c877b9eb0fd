"""Claiming pages, holding them, and ending their attempts: all that a worker does to records.

A claim is the state ``processing`` with a token and a lease. Whoever holds it renews the lease; an
outcome counts only if its token is still the page's. So a page is worked on at least once and gets
one outcome an attempt. Every function here runs within a store's transaction.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from nimbus_tasks.core.batches import cancelled_batches
from nimbus_tasks.core.clock import iso_after, to_iso
from nimbus_tasks.core.keys import (
    are_ids,
    is_id,
    last_part,
    page_key,
    status_key,
)
from nimbus_tasks.core.lapses import is_suspect, put_back_claimed, take_up_lapsed
from nimbus_tasks.core.logs import LogEntry, append_logs
from nimbus_tasks.core.pages import read_statuses, status_entries, status_or_none
from nimbus_tasks.core.queue import first_items, is_newer, read_item
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, Usage, queue_entry
from nimbus_tasks.core.wire import text_field, time_field
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, Entry, KeyValues


class Claim(NamedTuple):
    """A page that is ours until the lease ends.

    ``page`` is its record, if there is one; ``stored`` is the status as the claim wrote it: a
    record that still is that text need not be read again.
    """

    page_id: str
    status: PageStatus
    page: Entry | None
    stored: str = ""

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.status.attempts


class Outcome(NamedTuple):
    """How an attempt ended.

    ``page_value`` is the page record with the optimization in it, where there is one. An outcome
    with ``error`` is a failure, and is tried again at once if ``try_again`` is set.
    """

    claim: Claim
    started: str
    completed: str
    duration_ms: int
    changes: int = 0
    confidence: float | None = None
    usage: Usage | None = None
    page_value: str | None = None
    error: str | None = None
    code: str | None = None
    try_again: bool = False
    entries: Sequence[LogEntry] = ()


def claim_pages(
    tx: KeyValues,
    project_id: str,
    limit: int,
    lease_seconds: float,
    now: datetime,
    batch_id: str | None = None,
    *,
    has_suspect: bool = False,
) -> list[Claim]:
    """Claim up to ``limit`` queued pages: highest priority first, then oldest.

    A claim is held until ``lease_seconds`` after ``now``, unless it is renewed. Queue items that no
    queued page stands behind are removed on the way; queued pages of a cancelled batch become
    cancelled. Of the pages that another lapse would make fail, a worker is given one at a time
    (``has_suspect``: it has one): if that makes it vanish, the others do not fail with it.
    """
    claims: list[Claim] = []
    #: Items that are left for later.
    left: set[str] = set()
    fresh = iso_after(-tx.lag_seconds, start=now)
    while len(claims) < limit:
        items = first_items(tx, project_id, limit - len(claims), batch_id, left)
        if not items:
            break
        statuses = _statuses_behind(tx, project_id, items)
        # Where the queue is messages, one comes again after its worker has vanished: the page's
        # claim has lapsed then.
        lapsed = [page_id for page_id, status in statuses.items() if status.lapsed(to_iso(now))]
        if lapsed:
            take_up_lapsed(tx, project_id, lapsed, now)
            statuses |= read_statuses(tx, project_id, lapsed)
        pages = _contents_behind(tx, project_id, statuses)
        for key in items:
            page_id = last_part(key)
            status = statuses.get(page_id)
            if status is not None and status.state == "queued" and is_suspect(status):
                if has_suspect:
                    left.add(key)
                has_suspect = True
            is_new = tx.lag_seconds > 0 and is_newer(key, fresh)
            if is_new and _is_early(key, status, project_id, has_content=page_id in pages):
                left.add(key)
        items = [key for key in items if key not in left]
        cancelled = cancelled_batches(tx, project_id, {s.batch_id for s in statuses.values()})
        changed: dict[str, PageStatus] = {}
        moment, lease = to_iso(now), iso_after(lease_seconds, start=now)
        token = secrets.token_hex(8)
        for number, key in enumerate(items):
            page_id = last_part(key)
            status = changed.get(page_id) or statuses.get(page_id)
            if status is None or not _is_meant(key, status, project_id):
                continue
            if status.batch_id in cancelled:
                changed[page_id] = status.as_cancelled(moment)
            else:
                changed[page_id] = _claimed(status, f"{token}{number:04x}", lease, moment)
        tx.delete_many(items)
        entries = status_entries(project_id, changed)
        tx.put_many(entries)
        claims += [
            Claim(page_id, status, pages.get(page_id), entry.value)
            for (page_id, status), entry in zip(changed.items(), entries, strict=True)
            if status.state == "processing"
        ]
    return claims


def _is_early(key: str, status: PageStatus | None, project_id: str, *, has_content: bool) -> bool:
    """Whether reads may not show yet what belongs to an item that was made just now: the content of
    its page, or the status that the page was queued with."""
    if status is not None and _is_meant(key, status, project_id):
        return not has_content
    return status is None or is_newer(key, status.updated)


def _is_meant(key: str, status: PageStatus, project_id: str) -> bool:
    """Whether the page is queued, and by this item. A writer that does not know our place in the
    record names none: any item is its own."""
    return status.state == "queued" and status.queue_key(project_id, last_part(key)) in (None, key)


def _contents_behind(
    tx: KeyValues, project_id: str, statuses: Mapping[str, PageStatus]
) -> dict[str, Entry]:
    """The contents of the pages that are queued, by page id."""
    queued = [page_id for page_id, status in statuses.items() if status.state == "queued"]
    entries = tx.get_many([page_key(project_id, page_id) for page_id in queued])
    return {last_part(key): entry for key, entry in entries.items()}


def finish_pages(
    tx: KeyValues, project_id: str, outcomes: Sequence[Outcome], now: datetime
) -> tuple[list[Outcome], list[Outcome]]:
    """Write the outcomes whose claims are still current; the others do not count.

    Returns what was written, with ``try_again`` as it came to be, and what was refused.
    """
    current = _current_statuses(tx, project_id, [outcome.claim for outcome in outcomes])
    moment = to_iso(now)
    counted: list[Outcome] = []
    refused: list[Outcome] = []
    written: dict[str, PageStatus] = {}
    logs: dict[str, Sequence[LogEntry]] = {}
    entries: list[Entry] = []
    to_repeat = {outcome.claim.status.batch_id for outcome in outcomes if outcome.try_again}
    cancelled = cancelled_batches(tx, project_id, to_repeat)
    for outcome in outcomes:
        page_id, status = outcome.claim.page_id, current.get(outcome.claim.page_id)
        if status is not None and _is_written(outcome, status):
            counted.append(outcome._replace(try_again=False))
            continue
        if status is None or not _holds(outcome.claim, status):
            refused.append(outcome)
            continue
        logs[page_id] = outcome.entries
        again = outcome.try_again and status.batch_id not in cancelled
        counted.append(outcome if again == outcome.try_again else outcome._replace(try_again=again))
        if again:
            spent = status.with_usage(outcome.usage)
            queued = spent.as_queued(status.priority or NEW_PAGE_PRIORITY, moment)
            written[page_id] = queued
            entries.append(queue_entry(project_id, page_id, queued))
            continue
        written[page_id] = _ended(status, outcome, moment)
        if outcome.page_value is not None and outcome.claim.page is not None:
            entries.append(_with_value(outcome.claim.page, outcome.page_value))
    tx.put_many(entries)
    tx.put_many(append_logs(tx, project_id, logs))
    tx.put_many(status_entries(project_id, written))
    return counted, refused


def renew_claims(
    tx: KeyValues,
    project_id: str,
    held: Mapping[str, tuple[Claim, str | None, float | None]],
    lease_seconds: float,
    now: datetime,
) -> list[str]:
    """Renew leases and show step and progress, by page id; returns the pages we hold no longer."""
    current = read_statuses(tx, project_id, held)
    lost: list[str] = []
    renewed: dict[str, PageStatus] = {}
    for page_id, (claim, step, progress) in held.items():
        status = current.get(page_id)
        if status is None or not _holds(claim, status):
            lost.append(page_id)
            continue
        renewed[page_id] = status.changed(
            updated=to_iso(now),
            lease=iso_after(lease_seconds, start=now),
            step=step,
            progress=progress,
        )
    tx.put_many(status_entries(project_id, renewed))
    return lost


def release_claims(
    tx: KeyValues, project_id: str, claims: Iterable[Claim], now: datetime
) -> list[str]:
    """Give pages back to the queue, at their old place, as if they had never been claimed."""
    held = {claim.page_id: claim for claim in claims}
    current = read_statuses(tx, project_id, held)
    ours = {
        page_id: status.changed(attempts=status.attempts - 1)
        for page_id, status in current.items()
        if _holds(held[page_id], status)
    }
    put_back_claimed(tx, project_id, ours, now)
    return list(ours)


def _statuses_behind(tx: KeyValues, project_id: str, items: Sequence[str]) -> dict[str, PageStatus]:
    """The statuses of the items' pages. A damaged record is made anew from its item, so that its
    page is worked on; whatever else it said is lost already."""
    page_ids = set(map(last_part, items))
    if not are_ids(page_ids):
        page_ids = set(filter(is_id, page_ids))
    statuses = read_statuses(tx, project_id, page_ids)
    for key in items:
        page_id = last_part(key)
        if page_id in statuses or page_id not in page_ids:
            continue
        # Not a listing: that may have a record which no read has yet.
        entry = tx.get(status_key(project_id, page_id))
        batch_id = read_item(tx.get(key)).get("batch_id")
        if entry is not None and is_id(batch_id):
            anew = PageStatus("queued", str(batch_id), "")
            statuses[page_id] = status_or_none(entry) or anew
    return statuses


def _holds(claim: Claim, status: PageStatus) -> bool:
    return status.state == "processing" and status.claim == claim.status.claim


def _current_statuses(
    tx: KeyValues, project_id: str, claims: Sequence[Claim]
) -> dict[str, PageStatus]:
    """The statuses of claimed pages as they are now, those that can be read."""
    claimed = {status_key(project_id, claim.page_id): claim for claim in claims}
    found = {}
    for key, value in tx.get_values(claimed).items():
        claim = claimed[key]
        status = claim.status if value == claim.stored else status_or_none(Entry(key, value))
        if status is not None:
            found[claim.page_id] = status
    return found


def _claimed(status: PageStatus, token: str, lease: str, moment: str) -> PageStatus:
    return status.changed(
        state="processing",
        updated=moment,
        attempts=status.attempts + 1,
        claim=token,
        lease=lease,
        started=moment,
        step=None,
        progress=0,
    )


def _is_written(outcome: Outcome, status: PageStatus) -> bool:
    """Whether the record is this outcome already: it was sent before, and the answer was lost."""
    claim = outcome.claim.status
    ended = (status.state, status.attempts, status.completed, status.batch_id)
    state = "failed" if outcome.error is not None else "done"
    return ended == (state, claim.attempts, outcome.completed, claim.batch_id)


def _ended(status: PageStatus, outcome: Outcome, moment: str) -> PageStatus:
    return status.with_usage(outcome.usage).changed(
        state="failed" if outcome.error is not None else "done",
        # Not the time of completion: a lease may have been renewed since, and no record may be
        # followed by one with an earlier time.
        updated=moment,
        claim=None,
        lease=None,
        lapses=0,
        started=outcome.started,
        completed=outcome.completed,
        duration_ms=outcome.duration_ms,
        changes=outcome.changes,
        confidence=outcome.confidence,
        error=outcome.error,
        code=outcome.code,
    )


def _with_value(page: Entry, value: str) -> Entry:
    """The page record with that value. Its metadata are kept if a store takes them, or else only
    our own fields: whatever somebody else has written, the page must be able to end."""
    metadata = page.metadata
    try:
        text = json.dumps(dict(metadata or {}), separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        text = ""
    if not 0 < len(text) <= MAX_METADATA_BYTES:
        ours = ("batch_id", "uploaded", "sha256")
        told = {name: text_field((metadata or {}).get(name)) for name in ours}
        metadata = {name: text for name, text in told.items() if is_id(text) or time_field(text)}
    return page._replace(value=value, metadata=metadata)
