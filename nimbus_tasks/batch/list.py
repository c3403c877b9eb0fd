"""``nimbus.batch.list``, also plain ``nimbus.batch``: all batches of the project, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from invoke.context import Context

from nimbus_tasks.command import JSON_HELP, check_int, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.lifecycle import BatchStatus, Tally
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import batch_table
from nimbus_tasks.ui.console import Console


class BatchRow(NamedTuple):
    """A batch in the list. ``summary`` has completed, failed, pending and average_time_ms; with
    ``cancelled`` its pages add up to ``page_count``."""

    batch_id: str
    status: str
    created: str
    page_count: int
    summary: dict[str, int | None]
    cancelled: int = 0

    def to_json(self) -> dict[str, Any]:
        """An item of the list's document."""
        return {
            "batch_id": self.batch_id,
            "status": self.status,
            "created": self.created,
            "page_count": self.page_count,
            "summary": self.summary,
            "cancelled": self.cancelled,
        }


def list_batches(
    project: Project, store: Store, *, status: str | None = None, limit: int | None = None
) -> list[BatchRow]:
    """The batches, newest first: those of ``status``, at most ``limit``.

    Batches that are still open are folded from their pages; ended ones are taken from their
    record, which nothing changes unasked.
    """
    with store.snapshot() as reading:
        heads = batches.heads(reading, project.project_id)
        tallies = batches.fold_all(reading, project.project_id, heads)
    rows = [_row(head, tallies.get(head.batch_id)) for head in heads]
    return [row for row in rows if status in (None, row.status)][:limit]


def _row(head: BatchHead, tally: Tally | None) -> BatchRow:
    if tally is None:
        cancelled = head.counts.get("cancelled", 0)
        return BatchRow(
            head.batch_id, head.status, head.created, head.page_count, head.summary(), cancelled
        )
    status = tally.status(head.intent)
    cancelled = tally.counts["cancelled"]
    return BatchRow(head.batch_id, status, head.created, tally.total, tally.summary(), cancelled)


def show_batches(console: Console, rows: Sequence[BatchRow]) -> None:
    """Show them as a table."""
    if not rows:
        console.say("No batches. Make one with: invoke nimbus.upload")
        return
    cells = [
        (r.batch_id, r.status, r.created, r.page_count, {**r.summary, "cancelled": r.cancelled})
        for r in rows
    ]
    console.say(*batch_table(cells, console.style, console.columns, utc_now()))


@command(
    name="list",
    default=True,
    help={
        "status": "only batches of this status, e.g. partially_completed",
        "limit": "only the newest N",
        "json": JSON_HELP,
    },
)
def list_(
    c: Context, status: str | None = None, limit: str | None = None, json: bool = False
) -> list[BatchRow]:
    """List the project's batches, newest first.

    Example: invoke nimbus.batch.list --status=partially_completed --limit=10
    """
    console = Console(json_only=json)
    known = [one.value for one in BatchStatus]
    if status is not None and status not in known:
        raise UsageError(f"no such status: {status[:40]!r}", advice=f"One of {', '.join(known)}.")
    most = check_int(limit, "--limit")
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        rows = list_batches(project, store, status=status, limit=most)
    if json:
        console.document({"batches": [row.to_json() for row in rows]})
    else:
        show_batches(console, rows)
    return rows
