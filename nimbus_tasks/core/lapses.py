"""Claims whose holder was not heard of for a whole lease: their pages go back to the queue, or fail
for what seems to be their own fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from nimbus_tasks.core.batches import cancelled_batches
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.logs import LogEntry, append_logs, log_entry
from nimbus_tasks.core.pages import PageInfo, read_statuses, status_entries
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, queue_entry
from nimbus_tasks.kv.store import KeyValues

#: A page whose holders vanished this often is what makes them vanish: it fails.
MAX_LAPSES = 3


def is_suspect(status: PageStatus) -> bool:
    """Whether another lapse would make the page fail: it may be what makes workers vanish."""
    return status.lapses >= MAX_LAPSES - 1


def find_lapsed(pages: Iterable[PageInfo], now: datetime) -> dict[str, str]:
    """Those of the pages whose holder was not heard of for a whole lease, and their batches by page
    id."""
    moment = to_iso(now)
    return {page.page_id: page.status["batch_id"] for page in pages if page.has_lapsed(moment)}


def take_up_lapsed(
    tx: KeyValues, project_id: str, page_ids: Iterable[str], now: datetime
) -> tuple[list[str], list[str]]:
    """Queue pages again whose claim has lapsed, if it still has.

    Returns the page ids that are queued again, and those that fail for having lapsed too often.
    """
    moment = to_iso(now)
    lapsed = {
        page_id: status.changed(lapses=status.lapses + 1)
        for page_id, status in read_statuses(tx, project_id, page_ids).items()
        if status.lapsed(moment)
    }
    hopeless = {i: _lost(s, moment) for i, s in lapsed.items() if s.lapses >= MAX_LAPSES}
    put_back_claimed(tx, project_id, {i: s for i, s in lapsed.items() if i not in hopeless}, now)
    tx.put_many(status_entries(project_id, hopeless))
    notes = {page_id: [_lapse_note(status, moment)] for page_id, status in lapsed.items()}
    tx.put_many(append_logs(tx, project_id, notes))
    return [page_id for page_id in lapsed if page_id not in hopeless], list(hopeless)


def put_back_claimed(
    tx: KeyValues, project_id: str, statuses: Mapping[str, PageStatus], now: datetime
) -> None:
    """Queue claimed pages again, in the place that they had; those of a cancelled batch are
    cancelled instead. ``statuses`` are theirs, by page id."""
    cancelled = cancelled_batches(tx, project_id, {s.batch_id for s in statuses.values()})
    back: dict[str, PageStatus] = {}
    items = []
    for page_id, status in statuses.items():
        if status.batch_id in cancelled:
            back[page_id] = status.as_cancelled(to_iso(now))
            continue
        queued_at = status.queued_at or to_iso(now)
        queued = status.as_queued(status.priority or NEW_PAGE_PRIORITY, queued_at)
        back[page_id] = queued.changed(updated=to_iso(now))
        items.append(queue_entry(project_id, page_id, back[page_id]))
    tx.put_many(status_entries(project_id, back))
    tx.put_many(items)


def _lost(status: PageStatus, moment: str) -> PageStatus:
    message = f"{MAX_LAPSES} workers vanished while they had this page"
    return status.changed(
        state="failed",
        updated=moment,
        claim=None,
        lease=None,
        completed=moment,
        error=message,
        code="worker_lost",
    )


def _lapse_note(status: PageStatus, moment: str) -> LogEntry:
    message = f"The worker of attempt {status.attempts} has not been heard of"
    data = {"attempt": status.attempts, "batch_id": status.batch_id, "lapses": status.lapses}
    return log_entry(moment, "lease", message, level="warning", data=data)
