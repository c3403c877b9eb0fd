"""``nimbus.batch.verify``: is everything as the rules say? With ``--repair``, make it so.

It recounts a batch from its page records and looks for pages that are queued and in no queue,
queue items that no queued page stands behind, claims whose holder has gone, pages without content,
records that cannot be read, and a batch record that says something else than its pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.command import BATCH_HELP, JSON_HELP, Console, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.claims import take_up_lapsed
from nimbus_tasks.core.clock import now_iso, utc_now
from nimbus_tasks.core.errors import PagesFailedError
from nimbus_tasks.core.keys import last_part, page_key, page_prefix, queue_prefix
from nimbus_tasks.core.lifecycle import Intent, batch_status, is_finished
from nimbus_tasks.core.pages import read_statuses, status_entries
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, queue_entry
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, clip

#: More findings than a person reads; --json has them all.
_SHOWN = 30


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a page, or with the batch where ``page_id`` is ``None``."""

    kind: str
    detail: str
    page_id: str | None = None
    repaired: bool = False

    def to_json(self) -> dict[str, Any]:
        """An item of the document's findings."""
        return {
            "kind": self.kind,
            "page_id": self.page_id,
            "detail": self.detail,
            "repaired": self.repaired,
        }


@dataclass(frozen=True)
class Verified:
    """``ok``: nothing is wrong, or nothing is any more."""

    batch_id: str
    status: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether all is as it should be now."""
        return all(finding.repaired for finding in self.findings)

    @property
    def repaired(self) -> int:
        """How many findings have been put right."""
        return sum(finding.repaired for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "batch_id": self.batch_id,
            "status": self.status,
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
            "repaired": self.repaired,
        }


def verify_batch(
    project: Project, store: Store, batch: str | None = None, *, repair: bool = False
) -> Verified:
    """Check a batch (the latest, if left out) and the project's queue.

    With ``repair`` everything is put right that can be, in one transaction.
    """
    with store.transaction() if repair else store.snapshot() as tx:
        head = batches.find(tx, project.project_id, batch)
        checks = (_queue, _claims, _contents, _listing, _snapshot)
        findings = [finding for check in checks for finding in check(tx, head, repair)]
        head = batches.find(tx, project.project_id, head.batch_id)
        status = batch_status(head.intent, batches.fold(tx, head).counts).value
    return Verified(head.batch_id, status, findings)


def _queue(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Queued pages and queue items belong together, one to one."""
    project_id = head.project_id
    items = [info.key for info in tx.scan(queue_prefix(project_id))]
    in_queue = frozenset(items)
    statuses = read_statuses(tx, project_id, {last_part(key) for key in items})
    right = {key for page_id, s in statuses.items() if (key := s.queue_key(project_id, page_id))}
    strays = [key for key in items if key not in right]
    for key in strays:
        page_id = last_part(key)
        status = statuses.get(page_id)
        what = f"the page is {status.state}" if status else "there is no such page"
        if status is not None and status.state == "queued":
            what = "it is a second item of the same page"
        yield Finding(
            "stray_queue_item", f"a queue item that will not be worked on: {what}", page_id, repair
        )
    waiting = [p.page_id for p in batches.pages_of(tx, head) if p.status["status"] == "queued"]
    missing: dict[str, PageStatus] = {}
    for page_id, status in read_statuses(tx, project_id, waiting).items():
        if status.state == "queued" and status.queue_key(project_id, page_id) not in in_queue:
            missing[page_id] = status
            yield Finding("not_in_queue", "queued, and in no queue", page_id, repair)
    if repair:
        tx.delete_many(strays)
        _put_in_queue(tx, head, missing)


def _put_in_queue(tx: KeyValues, head: BatchHead, missing: dict[str, PageStatus]) -> None:
    now = now_iso()
    queued = {
        page_id: status.as_queued(status.priority or NEW_PAGE_PRIORITY, status.queued_at or now)
        for page_id, status in missing.items()
    }
    tx.put_many(status_entries(head.project_id, queued))
    tx.put_many(queue_entry(head.project_id, page_id, one) for page_id, one in queued.items())


def _claims(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Nobody holds a page longer than the lease."""
    now = utc_now()
    stuck = batches.look(tx, head, now).stalled
    if repair:
        take_up_lapsed(tx, head.project_id, [page.page_id for page in stuck], now)
    for page in stuck:
        yield Finding(
            "stalled",
            f"its worker has not been heard of since its lease ended at {page.status.get('lease')}",
            page.page_id,
            repair,
        )


def _contents(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """Every page that is still to be worked on has content."""
    there = {last_part(info.key) for info in tx.scan(page_prefix(head.project_id))}
    for page in batches.pages_of(tx, head):
        waits = page.status["status"] in ("queued", "processing")
        if waits and page.page_id not in there:
            detail = "its content is not in the store: upload it again"
            yield Finding("no_content", detail, page.page_id)


def _listing(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """The batch lists the pages that are in it, and no others; an upload has come to its end."""
    batch = batches.load(tx, head.project_id, head.batch_id)
    there = {page.page_id for page in batches.pages_of(tx, head)}
    lost = sorted(batch.pages.keys() - there)
    if head.intent == Intent.UPLOAD:
        detail = f"listed and not sent: go on with nimbus.upload --batch={head.batch_id}"
        yield from (Finding("not_uploaded", detail, page_id) for page_id in lost)
        return
    detail = "listed, and has no status record that can be read"
    yield from (Finding("no_status", detail, page_id, repair) for page_id in lost)
    unlisted = sorted(there - batch.pages.keys())
    detail = "belongs to the batch, which does not list it"
    yield from (Finding("unlisted", detail, page_id, repair) for page_id in unlisted)
    if repair and (unlisted or lost):
        _queue_anew(tx, head, lost)
        tx.put_many([batches.with_pages_there(tx, batch).entry()])


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
    _put_in_queue(tx, head, fresh)


def _snapshot(tx: KeyValues, head: BatchHead, repair: bool) -> Iterator[Finding]:
    """What the batch record says of an ended batch is what its pages say."""
    head = batches.find(tx, head.project_id, head.batch_id)
    tally = batches.fold(tx, head)
    status = batch_status(head.intent, tally.counts).value
    differs = head.is_final and (head.status, dict(head.counts)) != (status, tally.counts)
    if differs or (is_finished(status) and not head.is_final):
        yield Finding(
            "drift", f"the batch record says {head.status}, its pages say {status}", None, repair
        )
        if repair:
            batches.save_snapshot(tx, head.project_id, head.batch_id)


@command(
    help={
        "batch": BATCH_HELP,
        "repair": "put right what can be",
        "json": JSON_HELP,
    }
)
def verify(
    c: Context, batch: str | None = None, repair: bool = False, json: bool = False
) -> Verified:
    """Find, and mend, what is stuck or lost."""
    console = Console(json_only=json)
    project = load_project(project_root(c))
    with project.open_store() as store:
        verified = verify_batch(project, store, batch, repair=repair)
    if json:
        console.document(verified.to_json())
    else:
        console.say(*_lines(verified, console.style, console.columns))
        if not verified.ok and not repair:
            console.hint("invoke nimbus.batch.verify --repair")
    if not verified.ok:
        raise Exit(code=PagesFailedError.exit_code)
    return verified


def _lines(verified: Verified, style: Style, columns: int) -> list[str]:
    name = style.bold(verified.batch_id)
    if not verified.findings:
        return [f"{style.sign('ok')} {name}: all is as it should be"]
    count = len(verified.findings)
    what = f"{count:,} finding" + ("" if count == 1 else "s")
    lines = [f"{style.sign('ok' if verified.ok else 'warning')} {name}: {what}"]
    for finding in verified.findings[:_SHOWN]:
        about = f"{finding.page_id}: " if finding.page_id else ""
        mended = "mended: " if finding.repaired else ""
        lines.append(clip(clean(f"{mended}{finding.kind}: {about}{finding.detail}"), columns - 3))
    lines[1:] = [f"   {line}" for line in lines[1:]]
    if count > _SHOWN:
        lines.append(style.dim(f"   … and {count - _SHOWN:,} more; --json has them all"))
    return lines
