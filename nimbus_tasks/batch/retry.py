"""``nimbus.batch.retry``: the failed pages of a batch go back to the queue, ahead of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

from invoke.context import Context

from nimbus_tasks.command import BATCH_HELP, JSON_HELP, check_text, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.advice import work_command
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.clock import to_iso, utc_now
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import page_id_for, status_key
from nimbus_tasks.core.lifecycle import UNKNOWN_CODE, Intent
from nimbus_tasks.core.pages import PageInfo, in_groups, read_statuses
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.core.records import CODE_BYTES, RETRY_PRIORITY, queue_entry
from nimbus_tasks.core.small_forms import status_from_metadata
from nimbus_tasks.core.wire import clip_bytes
from nimbus_tasks.kv.store import Entry, KeyValues, Store
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import pages
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, clip, wrap

#: More page names than a person reads; --json has them all.
_SHOWN = 20


@dataclass(frozen=True)
class Retried:
    """``requeued`` are page ids, ``names`` the paths of the same pages. Pages that were left out:
    ``superseded`` counts failed ones that belong to a later batch now and are to be retried there,
    ``cancelled`` those that only ``include_cancelled`` would have taken, and ``other_codes`` are
    the codes of failed ones with another code than was asked for."""

    batch_id: str
    status: str
    requeued: list[str]
    names: list[str]
    superseded: int
    dry_run: bool = False
    other_codes: tuple[str, ...] = ()
    cancelled: int = 0

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        document: dict[str, Any] = {
            "batch_id": self.batch_id,
            "status": self.status,
            "requeued": self.requeued,
            "superseded": self.superseded,
        }
        return document | ({"dry_run": True} if self.dry_run else {})


def retry_pages(
    project: Project,
    store: Store,
    batch: str | None = None,
    *,
    page: str | None = None,
    code: str | None = None,
    include_cancelled: bool = False,
    dry_run: bool = False,
) -> Retried:
    """Queue the failed pages of a batch again, in one transaction: all of them or none.

    ``page`` (an id or a source path) or ``code`` (an error's) choose among them;
    ``include_cancelled`` adds the cancelled ones. What earlier attempts did stays in the logs.
    Raises :class:`NotFoundError` for an unknown batch, or a page that is not in it.
    """
    with store.snapshot() if dry_run else store.transaction() as tx:
        head = batches.find(tx, project.project_id, batch)
        infos: Iterable[PageInfo] = batches.pages_of(tx, head)
        if page is not None:
            infos = [_named(infos, head, page)]
        found = _choose(infos, code, include_cancelled)
        chosen = found.chosen
        if dry_run or not chosen:
            status = batches.fold(tx, head).status(head.intent)
        else:
            status, chosen = _requeue(tx, head, chosen)
    return Retried(
        batch_id=head.batch_id,
        status=status,
        requeued=[info.page_id for info in chosen],
        names=[info.name for info in chosen],
        superseded=found.superseded,
        dry_run=dry_run,
        other_codes=tuple(sorted(found.other_codes)),
        cancelled=found.cancelled,
    )


def _named(infos: Iterable[PageInfo], head: BatchHead, page: str) -> PageInfo:
    """The page of that id, or else of that path: a path may look like an id. Raises
    :class:`NotFoundError`."""
    by_path = page_id_for(head.project_id, page)
    found = {info.page_id: info for info in infos if info.page_id in (page, by_path)}
    if not found:
        raise NotFoundError(
            f"{head.batch_id} has no such page",
            advice="Give a page id or path as nimbus.batch.report has it.",
        )
    return found[page] if page in found else found[by_path]


class _Found(NamedTuple):
    """Pages to retry, in the order of their names, and what else there is: see :class:`Retried`."""

    chosen: list[PageInfo]
    superseded: int
    other_codes: set[str]
    cancelled: int


def _choose(infos: Iterable[PageInfo], code: str | None, include_cancelled: bool) -> _Found:
    code = None if code is None else clip_bytes(code, CODE_BYTES)  # as the listing has it
    chosen: list[PageInfo] = []
    superseded = cancelled = 0
    others: set[str] = set()
    for info in infos:
        state, its_code = info.status["status"], info.status.get("code") or UNKNOWN_CODE
        if state not in ("failed", "cancelled"):
            continue
        is_superseded = bool(info.status.get("superseded_by"))
        if code not in (None, its_code):
            others |= {its_code} if state == "failed" and not is_superseded else set()
        elif is_superseded:
            superseded += state == "failed" or include_cancelled
        elif state == "cancelled" and not include_cancelled:
            cancelled += 1
        else:
            chosen.append(info)
    chosen.sort(key=lambda info: (info.name, info.page_id))
    return _Found(chosen, superseded, others, cancelled)


def _requeue(tx: KeyValues, head: BatchHead, chosen: list[PageInfo]) -> tuple[str, list[PageInfo]]:
    """Queue the pages; returns the batch's status after that, and the pages that were queued."""
    # An upload that is under way stays one: its missing pages must not be forgotten.
    intent = head.intent if head.intent == Intent.UPLOAD else Intent.RETRY.value
    batch = batches.load(tx, head.project_id, head.batch_id)
    # First the batch: if this is cut off, nobody must find an ended batch with queued pages.
    tx.put_many([replace(batch, head=replace(batch.head, intent=intent, reason=None)).entry()])
    requeued: list[PageInfo] = []
    tx.put_many(_as_queued(tx, head, chosen, requeued))
    tx.put_many(
        queue_entry(head.project_id, page_id, status)
        for some in in_groups(info.page_id for info in requeued)
        for page_id, status in read_statuses(tx, head.project_id, some).items()
    )
    return batches.save_snapshot(tx, head.project_id, head.batch_id), requeued


def _as_queued(
    tx: KeyValues, head: BatchHead, chosen: list[PageInfo], requeued: list[PageInfo]
) -> Iterator[Entry]:
    """The statuses of pages as queued ones, a group at a time; the pages are added to ``requeued``.

    Where a listing lags, a page's own record may say that it has been queued again already.
    """
    moment = utc_now()
    for some in in_groups(chosen):
        found = read_statuses(tx, head.project_id, [info.page_id for info in some])
        for info in some:
            # A record that cannot be read is made anew of what the listing tells.
            status = found.get(info.page_id)
            status = status or status_from_metadata({**info.status, "batch_id": head.batch_id})
            if status.state not in ("failed", "cancelled"):
                continue
            requeued.append(info)
            queued = status.as_queued(RETRY_PRIORITY, to_iso(moment)).changed(lapses=0)
            yield queued.entry(status_key(head.project_id, info.page_id))
            # A microsecond apart, so that they are claimed in this order.
            moment += timedelta(microseconds=1)


@command(
    help={
        "batch": BATCH_HELP,
        "page": "only this page: its id or its path",
        "error": "only pages that failed with this error code",
        "include-cancelled": "the cancelled pages too",
        "dry-run": "say which pages; change nothing",
        "json": JSON_HELP,
    }
)
def retry(
    c: Context,
    batch: str | None = None,
    page: str | None = None,
    error: str | None = None,
    include_cancelled: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> Retried:
    """Queue a batch's failed pages again.

    Example: invoke nimbus.batch.retry --error=rate_limited nimbus.worker
    """
    console = Console(json_only=json)
    page, error = check_text(page, "--page"), check_text(error, "--error")
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        retried = retry_pages(
            project,
            store,
            batch,
            page=page,
            code=error,
            include_cancelled=include_cancelled,
            dry_run=dry_run,
        )
    if json:
        console.document(retried.to_json())
    else:
        console.say(*_lines(retried, console.style, console.columns))
        if retried.requeued and not dry_run:
            console.hint(work_command(project.engine))
    return retried


def _lines(retried: Retried, style: Style, columns: int) -> list[str]:
    lines = []
    if not retried.requeued:
        which = " with that code" if retried.other_codes else ""
        lines.append(f"{style.sign('ok')} No failed pages{which} to retry in {retried.batch_id}")
        if retried.other_codes:
            codes = ", ".join(clean(code) for code in retried.other_codes)
            lines.append(f"   {clip(f'there are: {codes}', columns - 3)}")
    else:
        what = "Would queue" if retried.dry_run else "Queued"
        title = (
            f"{style.sign('retrying')} {what} {pages(len(retried.requeued))} of"
            f" {style.bold(retried.batch_id)} again, ahead of new pages"
        )
        first, *rest = wrap(title, columns, indent=3)
        lines += [first, *(f"   {line}" for line in rest)]
        lines += [
            f"   ↻ {clip(clean(name), columns - 5, keep_end=True)}"
            for name in retried.names[:_SHOWN]
        ]
        if len(retried.names) > _SHOWN:
            lines.append(style.dim(f"   … and {len(retried.names) - _SHOWN:,} more"))
    if retried.cancelled:
        are = "is" if retried.cancelled == 1 else "are"
        lines.append(
            f"   {pages(retried.cancelled)} {are} cancelled; --include-cancelled takes them too"
        )
    if retried.superseded:
        lines.append(
            f"   {retried.superseded:,} more belong to a later batch now; retry them there"
        )
    return lines
