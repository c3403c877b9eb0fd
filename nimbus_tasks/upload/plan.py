"""What an upload has to send, and to which batch: decided before anything is written."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from sys import intern
from typing import NamedTuple

from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.errors import NotFoundError, UsageError
from nimbus_tasks.core.keys import page_prefix
from nimbus_tasks.core.lifecycle import Intent
from nimbus_tasks.core.maps import ContentMap
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import KeyValues


@dataclass(frozen=True)
class Plan:
    """What an upload does: ``wanted`` maps are sent, to the batch ``head`` or to a new one.

    ``elsewhere`` counts maps whose page is in a later batch than ``head``, and stays there.
    ``anew`` are the ids of wanted pages that ``head`` has already, with another content. Of the
    other batches, ``cut_off`` are the ids of those whose upload has not come to its end, and
    ``open`` of those whose record does not say that they have ended.
    """

    head: BatchHead | None
    wanted: Sequence[ContentMap]
    elsewhere: int = 0
    cut_off: Sequence[str] = ()
    open: Sequence[str] = ()
    anew: Set[str] = frozenset()

    def pages_after(self, store: KeyValues | None) -> int:
        """How many pages the batch will have."""
        if store is None or self.head is None:
            return len(self.wanted)
        listed = batches.load(store, self.head.project_id, self.head.batch_id).pages
        return len(listed.keys() | {content_map.page_id for content_map in self.wanted})

    def taken_over(self, store: KeyValues | None, project_id: str) -> int:
        """How many of the pages are in another batch, which loses them."""
        if store is None:
            return 0
        wanted = {content_map.page_id for content_map in self.wanted}
        own = ("", None if self.head is None else self.head.batch_id)
        return sum(
            page.page_id in wanted and page.status["batch_id"] not in own
            for page in list_pages(store, project_id)
        )


def plan_upload(
    project: Project,
    store: KeyValues | None,
    maps: Sequence[ContentMap],
    *,
    batch: str | None = None,
    changed: bool = False,
) -> Plan:
    """Decide which of ``maps`` are to be sent: with ``batch`` those that it lacks, with ``changed``
    those that the store lacks, else all.

    Where the last upload of just these pages was cut off, its batch goes on. Raises
    :class:`NotFoundError` for an unknown batch, :class:`UsageError` for one that takes no page.
    """
    head = _batch_to_continue(store, project, batch)
    if store is None:
        return Plan(None, maps)
    if changed and head is None:
        maps = _changed(store, project.project_id, maps)
    heads = batches.heads(store, project.project_id)
    head = head or _cut_off_upload(store, heads, maps)
    plan = Plan(None, maps) if head is None else _lacking(store, head, heads, maps)
    cut_off = [other.batch_id for other in heads if other.intent == Intent.UPLOAD and other != head]
    still_open = [other.batch_id for other in heads if not other.is_final and other != head]
    return replace(plan, cut_off=cut_off, open=still_open)


def _batch_to_continue(
    store: KeyValues | None, project: Project, batch: str | None
) -> BatchHead | None:
    if batch is None:
        return None
    if store is None:
        raise NotFoundError(f"no such batch: {batch}", advice="This project has no batch yet.")
    head = batches.find(store, project.project_id, batch)
    if head.intent == Intent.CANCEL:
        raise UsageError(
            f"{head.batch_id} was cancelled and takes no more pages",
            advice="Bring it back with: invoke nimbus.batch.retry --include-cancelled"
            f" --batch={head.batch_id}, or upload without --batch.",
        )
    return head


def _cut_off_upload(
    store: KeyValues, heads: Sequence[BatchHead], wanted: Sequence[ContentMap]
) -> BatchHead | None:
    """The latest batch, if its upload was cut off and sends what these maps do: it lists all of
    their pages, and has those that they leave out."""
    if not heads or heads[0].intent != Intent.UPLOAD:
        return None
    head = heads[0]
    listed = batches.load(store, head.project_id, head.batch_id).pages.keys()
    ids = {content_map.page_id for content_map in wanted}
    there = {page.page_id for page in batches.pages_of(store, head)}
    return head if ids <= listed <= ids | there else None


def _changed(store: KeyValues, project_id: str, maps: Sequence[ContentMap]) -> list[ContentMap]:
    """The maps whose page is not in the store with this content."""
    stored = _stored_contents(store, project_id)
    # Where content and status name different batches, or there is no status, an upload was cut off
    # between the two writes.
    holders = _holders(store, project_id)
    return [
        m
        for m in maps
        if (content := stored.get(m.page_id, _NOTHING)).sha256 != m.sha256
        or content.batch_id != holders.get(m.page_id)
    ]


def _lacking(
    store: KeyValues, head: BatchHead, heads: Sequence[BatchHead], maps: Sequence[ContentMap]
) -> Plan:
    """The maps whose page is not in the batch with this content. Those in a later batch stay there,
    or two batches would take them from one another."""
    later = {
        other.batch_id
        for other in heads
        if (other.created, other.batch_id) > (head.created, head.batch_id)
    }
    holders = _holders(store, head.project_id)
    stored = _stored_contents(store, head.project_id)
    lacking, anew, elsewhere, holder = [], set(), 0, ""
    for m in maps:
        if holders.get(m.page_id) in later:
            elsewhere, holder = elsewhere + 1, holders[m.page_id]
        elif holders.get(m.page_id) != head.batch_id:
            lacking.append(m)
        elif stored.get(m.page_id, _NOTHING).sha256 != m.sha256:
            lacking.append(m)
            anew.add(m.page_id)
    if maps and elsewhere == len(maps):
        raise UsageError(
            f"all these pages are in a later batch than {head.batch_id}: {holder}",
            advice="Go on with that one, or upload without --batch.",
        )
    return Plan(head, lacking, elsewhere, anew=anew)


class _Content(NamedTuple):
    """What is remembered of a page that is stored, of 100,000 of them at once."""

    sha256: object
    batch_id: str


_NOTHING = _Content(None, "")


def _stored_contents(store: KeyValues, project_id: str) -> dict[str, _Content]:
    contents, prefix = {}, page_prefix(project_id)
    for info in store.scan(prefix):
        metadata = info.metadata or {}
        content = _Content(metadata.get("sha256"), intern(str(metadata.get("batch_id"))))
        contents[info.key.removeprefix(prefix)] = content
    return contents


def _holders(store: KeyValues, project_id: str) -> dict[str, str]:
    """The batch that each page is in, by page id."""
    return {page.page_id: intern(page.status["batch_id"]) for page in list_pages(store, project_id)}
