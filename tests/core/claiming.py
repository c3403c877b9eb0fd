"""Pages that are claimed, held and ended, in a line with only what a test is about spelled out."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from nimbus_tasks.core.claims import (
    Claim,
    Outcome,
    claim_pages,
    finish_pages,
    release_claims,
    renew_claims,
)
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.keys import last_part, logs_key, page_key, queue_prefix, status_key
from nimbus_tasks.core.lapses import take_up_lapsed
from nimbus_tasks.core.logs import log_entry, read_logs
from nimbus_tasks.core.records import PageStatus, queue_entry, read_status
from nimbus_tasks.kv.store import Entry, KeyValues, Store
from tests.core.stored_batches import BATCH, LATER, NOW, PROJECT, put_batch

LEASE = 60.0


# --- making pages, and looking at them ---


def at(seconds: float) -> datetime:
    """So many seconds after now."""
    return NOW + timedelta(seconds=seconds)


def iso(seconds: float) -> str:
    """So many seconds after now, as the records write it."""
    return to_iso(at(seconds))


def cancel(store: KeyValues, batch_id: str = BATCH) -> None:
    """Ask for a batch to be cancelled; its pages are not touched yet."""
    put_batch(store, batch_id, intent="cancel")


def put_status(store: KeyValues, page_id: str, state: str, **fields: Any) -> PageStatus:
    """Store the status of a page."""
    usual = {"batch_id": BATCH, "updated": iso(0), "path": f"{page_id}.html"}
    status = PageStatus(state, **{**usual, **fields})
    store.put_many([status.entry(status_key(PROJECT, page_id))])
    return status


def put_page(store: KeyValues, page_id: str) -> None:
    """Store the content of a page."""
    value = json.dumps({"page_id": page_id, "source_path": f"{page_id}.html", "extraction": {}})
    store.put(page_key(PROJECT, page_id), value, {"sha256": page_id})


def queue(
    store: KeyValues, *page_ids: str, priority: int = 5, queued: float = -30, **fields: Any
) -> None:
    """Queue pages with content, ``queued`` seconds after now."""
    for page_id in page_ids:
        put_page(store, page_id)
        moment = iso(queued)
        status = put_status(
            store, page_id, "queued", priority=priority, queued_at=moment, updated=moment, **fields
        )
        store.put_many([queue_entry(PROJECT, page_id, status)])


def status_of(store: KeyValues, page_id: str) -> PageStatus:
    """The status of a page, which is there."""
    entry = store.get(status_key(PROJECT, page_id))
    assert entry is not None
    return read_status(entry)


def in_queue(store: KeyValues) -> list[str]:
    """The pages in the queue, in the order of its keys."""
    return [last_part(info.key) for info in store.scan(queue_prefix(PROJECT))]


def log_of(store: KeyValues, page_id: str) -> list[str]:
    """The messages in a page's log."""
    return [entry["message"] for entry in read_logs(store.get(logs_key(PROJECT, page_id)))]


def everything(store: KeyValues) -> dict[str, Entry]:
    """All that is stored."""
    kinds = ("batch:", "logs:", "page:", "queue:", "status:", "superseded:")
    return store.get_many([info.key for kind in kinds for info in store.scan(kind)])


# --- what a worker does, in a line ---


def claim(
    store: Store,
    limit: int = 10,
    *,
    now: float = 0,
    batch_id: str | None = None,
    has_suspect: bool = False,
) -> list[Claim]:
    """Claim up to ``limit`` pages, ``now`` seconds after now."""
    with store.transaction() as tx:
        return claim_pages(tx, PROJECT, limit, LEASE, at(now), batch_id, has_suspect=has_suspect)


def claim_one(store: Store, *, now: float = 0) -> Claim:
    """Claim the first page of the queue."""
    (claimed,) = claim(store, 1, now=now)
    return claimed


def success(claimed: Claim, **fields: Any) -> Outcome:
    """An attempt that ended well."""
    entries = [log_entry(iso(1), "done", f"attempt {claimed.attempt} ended well")]
    usual = {"started": iso(0), "completed": iso(1), "duration_ms": 1000, "changes": 2}
    return Outcome(claimed, **{**usual, "confidence": 0.5, "entries": entries, **fields})


def failure(claimed: Claim, **fields: Any) -> Outcome:
    """An attempt that failed."""
    entries = [log_entry(iso(1), "read", f"attempt {claimed.attempt} failed", level="error")]
    usual = {"error": "no title", "code": "bad_html", "changes": 0, "confidence": None}
    return success(claimed, **{**usual, "entries": entries, **fields})


def finish(store: Store, *outcomes: Outcome, now: float = 1) -> list[Outcome]:
    """Write outcomes; returns those that do not count."""
    with store.transaction() as tx:
        return finish_pages(tx, PROJECT, outcomes, at(now))[1]


def renew(
    store: Store,
    claimed: Claim,
    step: str | None = None,
    progress: float | None = 0,
    now: float = 1,
) -> list[str]:
    """Renew a claim; returns it if it is not ours any more."""
    with store.transaction() as tx:
        return renew_claims(
            tx, PROJECT, {claimed.page_id: (claimed, step, progress)}, LEASE, at(now)
        )


def release(store: Store, *claims: Claim, now: float = 1) -> list[str]:
    """Give claims back."""
    with store.transaction() as tx:
        return release_claims(tx, PROJECT, claims, at(now))


def take_up(store: Store, *page_ids: str, now: float) -> tuple[list[str], list[str]]:
    """Take lapsed pages up: those that are queued again, and those that fail."""
    with store.transaction() as tx:
        return take_up_lapsed(tx, PROJECT, page_ids, at(now))


# --- how a claim comes not to be the current one any more ---


def make_stolen(store: Store, claimed: Claim) -> None:
    take_up(store, claimed.page_id, now=LEASE + 1)
    claim_one(store, now=LEASE + 2)


def make_lapsed(store: Store, claimed: Claim) -> None:
    take_up(store, claimed.page_id, now=LEASE + 1)


def make_released(store: Store, claimed: Claim) -> None:
    release(store, claimed)


def make_ended(store: Store, claimed: Claim) -> None:
    finish(store, success(claimed))


def make_uploaded_anew(store: Store, claimed: Claim) -> None:
    queue(store, claimed.page_id, batch_id=LATER, queued=5)


def make_lost(store: Store, claimed: Claim) -> None:
    store.delete_many([status_key(PROJECT, claimed.page_id)])


def make_damaged(store: Store, claimed: Claim) -> None:
    store.put(status_key(PROJECT, claimed.page_id), "{damaged")


TAKEN_AWAY = [
    make_stolen,
    make_lapsed,
    make_released,
    make_ended,
    make_uploaded_anew,
    make_lost,
    make_damaged,
]
