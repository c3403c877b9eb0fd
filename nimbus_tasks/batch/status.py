"""``nimbus.batch.status``: what one batch is in, how far and how fast; without ``--batch``, all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context

from nimbus_tasks.command import (
    EXIT_STATUS_HELP,
    JSON_HELP,
    command,
    exit_with_outcome,
    project_root,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import batch_lines
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.next_steps import show_next

if TYPE_CHECKING:
    from nimbus_tasks.batch.list import BatchRow


def view_batch(project: Project, store: Store, batch: str | None = None) -> BatchView:
    """One look at a batch (the latest, if ``batch`` is left out), folded from its pages.

    Raises :class:`NotFoundError` where there is no such batch.
    """
    with store.snapshot() as reading:
        head = batches.find(reading, project.project_id, batch)
        return batches.look(reading, head, utc_now(), engine=project.engine)


@command(
    help={
        "batch": "a batch id, an unambiguous end of one, or 'latest' (default: lists all batches)",
        "exit-status": EXIT_STATUS_HELP,
        "json": JSON_HELP,
    }
)
def status(
    c: Context, batch: str | None = None, exit_status: bool = False, json: bool = False
) -> BatchView | list[BatchRow]:
    """Show where a batch stands.

    States, progress, rate, time left, pages in flight and failures; many
    failures in groups of one kind, and what to do next. Without --batch, all
    batches in a table.

    Example: invoke nimbus.batch.status --batch=latest
    """
    console = Console(json_only=json)
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        if batch is None:
            from nimbus_tasks.batch.list import list_batches, show_batches

            rows = list_batches(project, store)
            if json:
                console.document({"batches": [row.to_json() for row in rows]})
            else:
                show_batches(console, rows)
            if exit_status:
                for row in rows[:1]:
                    exit_with_outcome(row.status)
            return rows
        view = view_batch(project, store, batch)
    if json:
        console.document(view.to_json())
    else:
        console.say(*batch_lines(view, console.style, console.columns, utc_now()))
        show_next(console, next_steps_of(view))
    if exit_status:
        exit_with_outcome(view.status)
    return view
