"""The batch record: which pages a batch has, what was asked for it, and a snapshot of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nimbus_tasks.core.keys import batch_key, is_id
from nimbus_tasks.core.lifecycle import PAGE_STATES, BatchStatus, Intent, Tally, is_finished
from nimbus_tasks.core.pages import in_groups
from nimbus_tasks.core.wire import (
    clip_bytes,
    count_field,
    dump_json,
    load_object,
    mapping_field,
    present,
    text_field,
    time_field,
)
from nimbus_tasks.kv.store import Entry, KeyInfo

#: Serialised bytes that a reason may take of the metadata's 1024.
_REASON_BYTES = 260


@dataclass(frozen=True)
class BatchHead:
    """What the metadata of a batch record tells: all of it but its pages.

    ``status``, ``counts`` and ``average_time_ms`` are the snapshot of whoever last wrote it; the
    truth is folded from the page records.
    """

    batch_id: str
    project_id: str
    created: str
    page_count: int
    status: str
    intent: str
    counts: Mapping[str, int] = field(default_factory=dict)
    average_time_ms: int | None = None
    reason: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the snapshot says that the batch has ended: then nothing changes it unasked."""
        return is_finished(self.status)

    def summary(self) -> dict[str, int | None]:
        """The seed's summary, out of the snapshot."""
        counts = self.counts
        pending = sum(counts.get(state, 0) for state in ("uploaded", "queued", "processing"))
        return {
            "completed": counts.get("done", 0),
            "failed": counts.get("failed", 0),
            "pending": pending if counts else self.page_count,
            "average_time_ms": self.average_time_ms,
        }

    def metadata(self) -> dict[str, Any]:
        """The metadata of the batch record."""
        return present(
            status=self.status,
            created=self.created,
            page_count=self.page_count,
            intent=self.intent,
            counts=dict(self.counts),
            average_time_ms=self.average_time_ms,
            reason=None if self.reason is None else clip_bytes(self.reason, _REASON_BYTES),
        )


@dataclass(frozen=True)
class Batch:
    """``batch:{project}:{batch}``: head, all page ids with a snapshot of each, unknown fields."""

    head: BatchHead
    pages: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> Entry:
        """What is to be stored."""
        head = self.head
        value = {
            **self.extra,
            "batch_id": head.batch_id,
            "project_id": head.project_id,
            "created": head.created,
            "page_count": head.page_count,
            "status": head.status,
            "intent": head.intent,
            **present(reason=head.reason),
            "summary": {**mapping_field(self.extra.get("summary")), **head.summary()},
        }
        key = batch_key(head.project_id, head.batch_id)
        # Ten megabytes, of 100,000 pages, are put together once.
        text = "".join([dump_json(value)[:-1], ',"pages":{', *_pages_json(self.pages), "}}"])
        return Entry(key, text, head.metadata())

    def with_snapshot(
        self, tally: Tally, status: str, pages: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Batch:
        """The same batch with what its pages add up to, and each as it is where given."""
        head = replace(
            self.head,
            status=status,
            page_count=tally.total,
            counts=tally.counts,
            average_time_ms=tally.average_time_ms(),
        )
        return replace(self, head=head, pages=self.pages if pages is None else pages)

    def pages_in(self, states: Iterable[tuple[str, str]]) -> dict[str, Mapping[str, Any]]:
        """The batch's pages with those ``states`` (page id and state), by page id; a page that is
        not among them is ``uploaded``."""
        made: dict[tuple[int, str], Mapping[str, Any]] = {}

        def put(page_id: str, page: Mapping[str, Any], state: str) -> None:
            # Pages of one batch say nearly all the same: what is equal is one object.
            if (same := made.get((id(page), state))) is None:
                same = made[id(page), state] = {**page, "status": state}
            pages[page_id] = same

        pages: dict[str, Mapping[str, Any]] = {}
        for page_id, page in self.pages.items():
            put(page_id, page, "uploaded")
        for page_id, state in states:
            if page_id in self.pages:
                put(page_id, self.pages[page_id], state)
        return pages


def _pages_json(pages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The members of the pages' JSON object, a thousand at a time. Pages that share one object are
    encoded once; page ids need no escapes."""
    comma = ""
    for some in in_groups(pages.items()):
        different = {id(page): page for _, page in some}
        told = {number: dump_json(page) for number, page in different.items()}
        yield comma + ",".join([f'"{page_id}":{told[id(page)]}' for page_id, page in some])
        comma = ","


_BATCH_FIELDS = frozenset(
    (
        "batch_id",
        "project_id",
        "created",
        "page_count",
        "status",
        "intent",
        "reason",
        "pages",
        "summary",
    )
)
#: The intent of a batch by its status, where a writer has left none.
_INTENT_OF_STATUS = {
    "uploading": Intent.UPLOAD.value,
    "retrying": Intent.RETRY.value,
    "cancelling": Intent.CANCEL.value,
    "cancelled": Intent.CANCEL.value,
}


_SUMMARY_FIELDS = frozenset(("completed", "failed", "pending", "average_time_ms"))
_INTENTS = frozenset(intent.value for intent in Intent)
_STATUSES = frozenset(status.value for status in BatchStatus)
#: Different objects that are remembered while a record is parsed: somebody else may say something
#: else of every page.
_MAX_KNOWN = 1000


def _status(value: object) -> str:
    """What a record says that its batch is in; nothing where that is no status."""
    return value if isinstance(value, str) and value in _STATUSES else ""


def head_from_metadata(project_id: str, batch_id: str, info: KeyInfo) -> BatchHead | None:
    """The head out of a listing; ``None`` where the metadata is not ours: read the value then."""
    metadata = info.metadata or {}
    intent, created = metadata.get("intent"), time_field(metadata.get("created"))
    page_count = count_field(metadata.get("page_count"))
    if not isinstance(intent, str) or intent not in _INTENTS or not created or page_count is None:
        return None
    counts = mapping_field(metadata.get("counts"))
    return BatchHead(
        batch_id=batch_id,
        project_id=project_id,
        created=created,
        page_count=page_count,
        status=_status(metadata.get("status")),
        intent=intent,
        counts={state: count_field(counts.get(state)) or 0 for state in PAGE_STATES}
        if counts
        else {},
        average_time_ms=count_field(metadata.get("average_time_ms")),
        reason=text_field(metadata.get("reason")),
    )


def read_batch(project_id: str, batch_id: str, entry: Entry) -> Batch:
    """The batch record of an entry, ours or the seed's. Raises :class:`UnreadableRecordError`."""
    value = load_object(entry, _each_once())
    pages, summary = mapping_field(value.get("pages")), mapping_field(value.get("summary"))
    # Nearly always all are sound, and of 100,000 pages no other dictionary is made then.
    if not (all(map(is_id, pages)) and set(map(type, pages.values())) <= {dict}):
        pages = {page_id: mapping_field(pages[page_id]) for page_id in pages if is_id(page_id)}
    head = head_from_metadata(project_id, batch_id, KeyInfo(entry.key, entry.metadata))
    if head is None:
        status, intent = _status(value.get("status")), text_field(value.get("intent"))
        head = BatchHead(
            batch_id=batch_id,
            project_id=project_id,
            created=time_field(value.get("created")) or "",
            page_count=len(pages),
            status=status,
            counts=_counts_of(summary),
            intent=intent
            if intent in _INTENTS
            else _INTENT_OF_STATUS.get(status, Intent.RUN.value),
            average_time_ms=count_field(summary.get("average_time_ms")),
            reason=text_field(value.get("reason")),
        )
    # The metadata has the beginning of a long reason only.
    head = replace(head, reason=text_field(value.get("reason")) or head.reason)
    extra = {name: value[name] for name in value if name not in _BATCH_FIELDS}
    if unknown := {k: v for k, v in summary.items() if k not in _SUMMARY_FIELDS}:
        extra["summary"] = unknown
    return Batch(head, pages, extra)


def _each_once() -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for the parser with which equal objects are one and the same. A record says nearly the
    same of each page: as 100,000 objects that takes 40 MB. Nobody may change them."""
    known: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        key = tuple(pairs)
        try:
            same = known.get(key)
        except TypeError:  # one that holds others
            return dict(pairs)
        if same is not None:
            return same
        one = dict(pairs)
        # 1 equals 1.0, and true: only texts are the same where they are equal.
        if len(known) < _MAX_KNOWN and all(type(value) is str for value in one.values()):
            known[key] = one
        return one

    return made


def _counts_of(summary: Mapping[str, Any]) -> dict[str, int]:
    """What a summary without counts, the seed's, says of the pages; nothing if it says nothing."""
    said = {
        "done": count_field(summary.get("completed")),
        "failed": count_field(summary.get("failed")),
        "queued": count_field(summary.get("pending")),
    }
    if all(count is None for count in said.values()):
        return {}
    return dict.fromkeys(PAGE_STATES, 0) | {state: count or 0 for state, count in said.items()}
