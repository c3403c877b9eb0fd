"""``nimbus.batch.cancel``: no queued page of the batch starts any more.

Pages in flight finish and keep their result; of those that the Worker has claimed, the ones that
wait for its consumer are cancelled too. The batch must be named: what is cancelled by a slip
takes a retry to bring back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import JSON_HELP, check_text, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.lifecycle import Intent, is_finished
from nimbus_tasks.core.pages import in_groups, read_statuses, status_entries
from nimbus_tasks.core.project import WORKER_ENGINES, Project, load_project
from nimbus_tasks.kv.store import Entry, KeyValues, Store
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import pages
from nimbus_tasks.ui.style import Style

_WAITING = ("queued", "uploaded")


@dataclass(frozen=True)
class Cancelled:
    """``cancelled`` pages were waiting and will not start; ``in_flight`` ones will end;
    ``finished_before`` had ended already. ``was_finished``: the batch had ended, and is unchanged.
    """

    batch_id: str
    status: str
    cancelled: int
    in_flight: int
    finished_before: int
    was_finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "batch_id": self.batch_id,
            "status": self.status,
            "cancelled": self.cancelled,
            "in_flight": self.in_flight,
            "finished_before": self.finished_before,
        }


def cancel_batch(
    project: Project, store: Store, batch: str, *, reason: str | None = None
) -> Cancelled:
    """Cancel the pages of a batch that wait, in one transaction.

    A batch that has ended is left as it is. Raises :class:`NotFoundError` for an unknown one.
    """
    with store.transaction() as tx:
        head = batches.find(tx, project.project_id, batch)
        tally = batches.fold(tx, head)
        counts, status = tally.counts, tally.status(head.intent)
        ended = counts["done"] + counts["failed"] + counts["cancelled"]
        if is_finished(status) or head.intent == Intent.CANCEL:
            in_flight = counts["processing"]
            return Cancelled(head.batch_id, status, 0, in_flight, ended, is_finished(status))
        # First the batch: if this is cut off, whoever claims one of its pages cancels it instead.
        _mark(tx, head, reason)
        waiting = _cancel_waiting(tx, head)
        status = batches.save_snapshot(tx, project.project_id, head.batch_id)
    return Cancelled(head.batch_id, status, waiting, counts["processing"], ended)


def _cancel_waiting(tx: KeyValues, head: BatchHead) -> int:
    """Cancel the pages that wait; returns how many."""
    waiting = [
        page.page_id for page in batches.pages_of(tx, head) if page.status["status"] in _WAITING
    ]
    items: list[str | None] = []
    tx.put_many(_cancelled(tx, head, waiting, items))
    tx.delete_many(key for key in items if key is not None)
    return len(items)


def _cancelled(
    tx: KeyValues, head: BatchHead, page_ids: list[str], items: list[str | None]
) -> Iterator[Entry]:
    """The statuses of pages as cancelled ones, a group at a time. The key of each one's queue item,
    ``None`` if it is not known, is added to ``items``."""
    now = now_iso()
    for some in in_groups(page_ids):
        # Where reads lag, the record may be newer than the listing: what has ended stays so.
        statuses = {
            page_id: status
            for page_id, status in read_statuses(tx, head.project_id, some).items()
            if status.state in _WAITING
        }
        items += [status.queue_key(head.project_id, i) for i, status in statuses.items()]
        cancelled = {page_id: status.as_cancelled(now) for page_id, status in statuses.items()}
        yield from status_entries(head.project_id, cancelled)


def _mark(tx: KeyValues, head: BatchHead, reason: str | None) -> None:
    """Write into the batch record that a cancel was asked for."""
    batch = batches.load(tx, head.project_id, head.batch_id)
    # Pages that an upload had listed and not sent never will be: the batch has those that are here.
    batch = batches.with_pages_there(tx, batch)
    marked = replace(batch.head, intent=Intent.CANCEL.value, reason=reason)
    tx.put_many([replace(batch, head=marked).entry()])


@command(
    help={
        "batch": "the batch to cancel: an id, an unambiguous end of one, or 'latest' (required)",
        "reason": "why; shown wherever the batch is",
        "json": JSON_HELP,
    }
)
def cancel(
    c: Context, batch: str | None = None, reason: str | None = None, json: bool = False
) -> Cancelled:
    """Let no further page of a batch start.

    Example: invoke nimbus.batch.cancel --batch=latest --reason='wrong prompt'
    """
    console = Console(json_only=json)
    if batch is None:
        raise UsageError(
            "which batch is to be cancelled?", advice="Name it: --batch=ID, or --batch=latest."
        )
    reason = check_text(reason, "--reason", stored=True)
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        cancelled = cancel_batch(project, store, batch, reason=reason)
    if json:
        console.document(cancelled.to_json())
    else:
        console.say(*_lines(cancelled, console.style, project.engine))
    return cancelled


def _lines(cancelled: Cancelled, style: Style, engine: str) -> list[str]:
    sign, name = style.sign(cancelled.status), style.bold(cancelled.batch_id)
    if cancelled.was_finished:
        return [
            f"{sign} {name} has ended already: {style.state(cancelled.status)}; nothing changed"
        ]
    lines = [f"{sign} {name}: {style.state(cancelled.status)}"]
    they = ", which finish and keep their result"
    if engine in WORKER_ENGINES:  # its claims wait in a Queue, and are looked at once more
        they = ": those that have begun finish and keep their result, the rest is cancelled"
    for count, what in (
        (cancelled.cancelled, "cancelled before they began"),
        (cancelled.in_flight, f"in flight{they}"),
        (cancelled.finished_before, "had ended before"),
    ):
        if count:
            lines.append(f"   {pages(count)} {what}")
    return lines
