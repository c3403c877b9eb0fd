"""The page records: status and queue item, as the wire contract has them.

Each is a JSON object under a key of :mod:`nimbus_tasks.core.keys`. Here a status is a frozen
dataclass; ``from_value`` reads what anybody wrote (unknown fields are carried in ``extra``, a field
of the wrong type counts as absent), ``entry`` gives what is to be stored, with metadata of at most
1024 bytes. Batch records are in :mod:`nimbus_tasks.core.batch_records`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nimbus_tasks.core.keys import queue_key
from nimbus_tasks.core.leases import has_lapsed
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.wire import (
    clip_bytes,
    cost_field,
    count_field,
    dump_json,
    id_field,
    load_object,
    mapping_field,
    number_field,
    present,
    priority_field,
    text_field,
    time_field,
)
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, Entry

NEW_PAGE_PRIORITY = 5
RETRY_PRIORITY = 8

#: Serialised bytes that a text may take of the metadata's 1024.
_PATH_BYTES, _ERROR_BYTES, _STEP_BYTES, CODE_BYTES = 220, 260, 120, 60


class Usage(NamedTuple):
    """What an attempt took of a service that counts: tokens, and money in the unit of its prices
    (``None`` where no price is known)."""

    tokens_in: int
    tokens_out: int
    cost: float | None = None


@dataclass(frozen=True)
class PageStatus:
    """``status:{project}:{page}``: what a page is in. Its writer is whoever holds the page.

    Times are ISO 8601, ``duration_ms`` milliseconds, ``progress`` percent, ``confidence`` 0 to 1.
    ``claim`` names the current claim: an outcome counts only if it brings the same. ``lapses``
    counts claims whose holder was never heard of again. Tokens and cost are of all attempts so far.
    ``extra`` are unknown fields of the record,
    ``detail`` those of the part that its state has (``processing``, ``result``, …).
    """

    state: str
    batch_id: str
    updated: str
    attempts: int = 0
    path: str | None = None
    uploaded: str | None = None
    priority: int | None = None
    queued_at: str | None = None
    claim: str | None = None
    lease: str | None = None
    lapses: int = 0
    started: str | None = None
    step: str | None = None
    progress: float | None = None
    completed: str | None = None
    duration_ms: int | None = None
    changes: int | None = None
    confidence: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    error: str | None = None
    code: str | None = None
    superseded_by: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> PageStatus:
        """Read a status record, ours or the seed's."""
        state = _state(value.get("status"))
        error = mapping_field(value.get("error"))
        # A record has the parts of its state only, one or two of the four.
        parts: dict[str, Any] = {}
        outcome = error | mapping_field(value.get("result"))
        # Of a page that is to be tried again it stands alone.
        if usage := mapping_field(outcome.get("usage")) or mapping_field(value.get("spent")):
            parts |= _usage_fields(usage)
        if outcome:
            parts |= _outcome_fields(outcome, error)
        if processing := mapping_field(value.get("processing")):
            parts |= _processing_fields(processing)
        if queued := mapping_field(value.get("queued")):
            parts["priority"] = priority_field(queued.get("priority"))
            parts["queued_at"] = time_field(queued.get("queued_at"))
        known: dict[str, Any] = {
            "state": state,
            "batch_id": id_field(value.get("batch_id")) or "",
            "updated": time_field(value.get("updated")) or "",
            "attempts": count_field(value.get("attempts")) or 0,
            "path": text_field(value.get("path")),
            "uploaded": time_field(value.get("uploaded")),
            "lapses": count_field(value.get("lapses")) or 0,
            "superseded_by": id_field(value.get("superseded_by")),
            "extra": _others(value, _STATUS_FIELDS),
            "detail": _unknown_in(value, state),
        }
        return cls._made(_NO_FIELDS | known | parts)

    def to_value(self) -> dict[str, Any]:
        """The record as it is stored."""
        value: dict[str, Any] = {
            **self.extra,
            "status": self.state,
            "batch_id": self.batch_id,
            "updated": self.updated,
            "attempts": self.attempts,
            **present(path=self.path, uploaded=self.uploaded, superseded_by=self.superseded_by),
        }
        if self.lapses:
            value["lapses"] = self.lapses
        if self.state not in ("done", "failed") and (usage := self._usage()):
            value["spent"] = usage["usage"]
        # In flight it keeps its place, to which it goes back if it is released.
        place = present(priority=self.priority, queued_at=self.queued_at)
        if self.state in ("queued", "processing") and place:
            value["queued"] = {**(self.detail if self.state == "queued" else {}), **place}
        if self.state == "processing":
            value["processing"] = {
                **self.detail,
                "started": self.started,
                "current_step": self.step,
                "progress": self.progress or 0,
                **present(claim=self.claim, lease=self.lease),
            }
        elif self.state == "done":
            value["result"] = {
                **self.detail,
                "completed": self.completed,
                "success": True,
                "changes": self.changes or 0,
                "confidence": self.confidence,
                "duration_ms": self.duration_ms,
                **present(started=self.started),
                **self._usage(),
            }
        elif self.state == "failed":
            value["error"] = {
                **self.detail,
                "message": self.error,
                "code": self.code,
                "timestamp": self.completed,
                **present(started=self.started, duration_ms=self.duration_ms),
                **self._usage(),
            }
        return value

    def _usage(self) -> dict[str, Any]:
        ours = present(tokens_in=self.tokens_in, tokens_out=self.tokens_out, cost=self.cost)
        return {"usage": {**mapping_field(self.detail.get("usage")), **ours}} if ours else {}

    def to_metadata(self) -> dict[str, Any]:
        """The record in small: one listing of these answers status, monitor, metrics and report."""
        small = present(
            status=self.state,
            batch_id=self.batch_id,
            updated=self.updated,
            attempts=self.attempts,
            path=None if self.path is None else clip_bytes(self.path, _PATH_BYTES),
            uploaded=self.uploaded,
            superseded_by=self.superseded_by,
        )
        if self.state == "queued":
            small |= present(priority=self.priority, queued_at=self.queued_at)
        elif self.state == "processing":
            step = None if self.step is None else clip_bytes(self.step, _STEP_BYTES)
            small |= present(
                started=self.started, step=step, progress=self.progress, lease=self.lease
            )
        elif self.state == "done":
            small |= present(
                started=self.started,
                completed=self.completed,
                duration_ms=self.duration_ms,
                changes=self.changes,
                confidence=self.confidence,
                tokens_in=self.tokens_in,
                tokens_out=self.tokens_out,
                cost=self.cost,
            )
        elif self.state == "failed":
            small |= present(
                started=self.started,
                completed=self.completed,
                duration_ms=self.duration_ms,
                tokens_in=self.tokens_in,
                tokens_out=self.tokens_out,
                cost=self.cost,
                code=None if self.code is None else clip_bytes(self.code, CODE_BYTES),
            )
            if self.error is not None:
                # The error has what the others leave: with ids of the usual length, all it needs.
                room = MAX_METADATA_BYTES - len(json.dumps(small, separators=(",", ":"))) - 10
                small["error"] = clip_bytes(self.error, min(_ERROR_BYTES, room))
        return small

    def entry(self, key: str) -> Entry:
        """What is to be stored under ``key``."""
        return Entry(key, dump_json(self.to_value()), self.to_metadata())

    def changed(self, **changes: Any) -> PageStatus:
        """The record with some fields changed."""
        return self._made(self.__dict__ | changes)

    @classmethod
    def _made(cls, fields: dict[str, Any]) -> PageStatus:
        """A record of exactly those fields, at a fifth of what the constructor of a frozen class
        takes, which sets them one by one: it is paid several times a page."""
        if fields.keys() != _NO_FIELDS.keys():
            raise TypeError(f"no fields of a status: {fields.keys() ^ _NO_FIELDS.keys()}")
        status = object.__new__(cls)
        status.__dict__.update(fields)
        return status

    def with_usage(self, usage: Usage | None) -> PageStatus:
        """The page that has taken so much more."""
        if usage is None:
            return self
        costs = [cost for cost in (self.cost, usage.cost) if cost is not None]
        return self.changed(
            tokens_in=(self.tokens_in or 0) + usage.tokens_in,
            tokens_out=(self.tokens_out or 0) + usage.tokens_out,
            cost=round(sum(costs), 8) if costs else None,
        )

    def lapsed(self, now: str) -> bool:
        """Whether it is being processed by somebody who has not been heard of for a whole lease."""
        return self.state == "processing" and has_lapsed(self.lease, self.updated, now)

    def queue_key(self, project_id: str, page_id: str) -> str | None:
        """Where the page's queue item lies; ``None`` where it is not queued, or we cannot know."""
        if self.state != "queued" or self.queued_at is None:
            return None
        return queue_key(project_id, page_id, self.priority or NEW_PAGE_PRIORITY, self.queued_at)

    def as_queued(self, priority: int, queued_at: str) -> PageStatus:
        """The page waiting for another attempt; what the last one left is in the logs,
        but for its usage."""
        return self.changed(
            state="queued",
            updated=queued_at,
            priority=priority,
            queued_at=queued_at,
            **_NO_ATTEMPT,
        )

    def as_cancelled(self, now: str, **changes: Any) -> PageStatus:
        """The page as one that will not be worked on."""
        return self.changed(state="cancelled", updated=now, **_NO_ATTEMPT, **changes)


#: What a record has of which nothing is said.
_NO_FIELDS = PageStatus("", "", "").__dict__.copy()
_STATUS_FIELDS = frozenset(
    (
        "status",
        "batch_id",
        "updated",
        "attempts",
        "path",
        "uploaded",
        "queued",
        "processing",
        "result",
        "error",
        "lapses",
        "superseded_by",
        "spent",
    )
)
_NO_ATTEMPT: dict[str, Any] = dict.fromkeys(
    (
        "claim",
        "lease",
        "started",
        "step",
        "progress",
        "completed",
        "duration_ms",
        "changes",
        "confidence",
        "error",
        "code",
    )
) | {"detail": {}}


def read_status(entry: Entry) -> PageStatus:
    """The status record of an entry. Raises :class:`UnreadableRecordError`."""
    return PageStatus.from_value(load_object(entry))


def queue_entry(project_id: str, page_id: str, status: PageStatus) -> Entry:
    """The queue item of a page whose status is ``queued``."""
    priority, queued_at = status.priority or NEW_PAGE_PRIORITY, status.queued_at or status.updated
    item = {
        "page_id": page_id,
        "batch_id": status.batch_id,
        "priority": priority,
        "queued_at": queued_at,
        "attempts": status.attempts,
    }
    key = queue_key(project_id, page_id, priority, queued_at)
    return Entry(key, dump_json(item), {"page_id": page_id, "batch_id": status.batch_id})


def _processing_fields(processing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "claim": text_field(processing.get("claim")),
        "lease": time_field(processing.get("lease")),
        "started": time_field(processing.get("started")),
        "step": text_field(processing.get("current_step")),
        "progress": number_field(processing.get("progress")),
    }


def _outcome_fields(outcome: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "started": time_field(outcome.get("started")),
        "completed": time_field(outcome.get("completed")) or time_field(outcome.get("timestamp")),
        "duration_ms": count_field(outcome.get("duration_ms")),
        "changes": count_field(outcome.get("changes")),
        "confidence": number_field(outcome.get("confidence")),
        "error": text_field(error.get("message")),
        "code": text_field(error.get("code")),
    }


def _usage_fields(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokens_in": count_field(usage.get("tokens_in")),
        "tokens_out": count_field(usage.get("tokens_out")),
        "cost": cost_field(usage.get("cost")),
    }


def _state(value: object) -> str:
    # A state that we do not know is taken for one that somebody has to look at.
    return value if isinstance(value, str) and value in PAGE_STATES else "failed"


#: The part of a record that goes with its state.
_PART_OF_STATE = {
    "queued": "queued",
    "processing": "processing",
    "done": "result",
    "failed": "error",
}
_PART_FIELDS = frozenset(
    (
        "priority",
        "queued_at",
        "started",
        "current_step",
        "progress",
        "claim",
        "lease",
        "completed",
        "success",
        "changes",
        "confidence",
        "duration_ms",
        "usage",
        "message",
        "code",
        "timestamp",
    )
)


def _others(value: Mapping[str, Any], known: Set[str]) -> dict[str, Any]:
    """The fields that are not ours; nearly always there are none."""
    if value.keys() <= known:
        return {}
    return {name: value[name] for name in value if name not in known}


def _unknown_in(value: Mapping[str, Any], state: str) -> dict[str, Any]:
    if state not in _PART_OF_STATE:
        return {}
    part = mapping_field(value.get(_PART_OF_STATE[state]))
    unknown = _others(part, _PART_FIELDS)
    if (usage := part.get("usage")) is not None:
        rest = usage
        if isinstance(usage, dict):
            rest = {name: usage[name] for name in usage if name not in Usage._fields}
        if rest != {}:
            unknown["usage"] = rest
    return unknown
