"""The page records: status and queue item, as the wire contract has them.

Each is a JSON object under a key of :mod:`nimbus_tasks.core.keys`. Here a status is a frozen
dataclass; ``from_value`` reads what anybody wrote (unknown fields are carried in ``extra``, a field
of the wrong type counts as absent), ``entry`` gives what is to be stored, with metadata of at most
1024 bytes. Batch records are in :mod:`nimbus_tasks.core.batch_records`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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
    priority_field,
    text_field,
    time_field,
)
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, MAX_VALUE_BYTES, Entry

NEW_PAGE_PRIORITY = 5
RETRY_PRIORITY = 8

#: Serialised bytes that a text may take of the metadata's 1024.
_PATH_BYTES, _ERROR_BYTES, _STEP_BYTES, CODE_BYTES = 220, 260, 120, 60
_CLIPPED = (("path", _PATH_BYTES), ("step", _STEP_BYTES), ("code", CODE_BYTES))


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
    Unknown fields are kept: ``extra`` are those of the record, ``detail`` those of the part that
    goes with its state (``processing``, ``result``, …).
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
        fields = _NO_FIELDS.copy()
        fields["state"] = state = _state(value.get("status"))
        fields["extra"] = extra = _read_into(fields, value, _RECORD)
        _read_into(fields, extra.pop("spent", None), _USAGE)
        for part, readers in _PARTS.items():
            if part not in extra:
                continue
            told = extra.pop(part)
            rest = _read_into(fields, told, readers)
            if rest:  # what is ours in another part would be taken for ours in the next state
                rest = {name: value for name, value in rest.items() if name not in _PART_NAMES}
            if "completed" in readers:
                rest |= _read_outcome(fields, mapping_field(told))
            if part == _PART_OF_STATE.get(state):
                fields["detail"] = rest
        return cls._made(fields)

    def to_value(self) -> dict[str, Any]:
        """The record as it is stored."""
        ours, state = self.__dict__, self.state
        value: dict[str, Any] = {
            **self.extra,
            "status": state,
            "batch_id": self.batch_id,
            "updated": self.updated,
            "attempts": self.attempts,
            **_present(ours, ("path", "uploaded", "superseded_by")),
        }
        if self.lapses:
            value["lapses"] = self.lapses
        # In flight it keeps its place, to which it goes back if it is released.
        place = _present(ours, ("priority", "queued_at"))
        if place and state in ("queued", "processing"):
            value["queued"] = {**self.detail, **place} if state == "queued" else place
        if state == "processing":
            value["processing"] = {
                **self.detail,
                "started": self.started,
                "current_step": self.step,
                "progress": self.progress or 0,
                **_present(ours, ("claim", "lease")),
            }
        elif state == "done":
            value["result"] = {
                **self.detail,
                "completed": self.completed,
                "success": True,
                "changes": self.changes or 0,
                "confidence": self.confidence,
                "duration_ms": self.duration_ms,
                **_present(ours, ("started",)),
            }
        elif state == "failed":
            value["error"] = {
                **self.detail,
                "message": self.error,
                "code": self.code,
                "timestamp": self.completed,
                **_present(ours, ("started", "duration_ms")),
            }
        if usage := _present(ours, Usage._fields):
            if state in ("done", "failed"):
                others = mapping_field(self.detail.get("usage"))
                value[_PART_OF_STATE[state]]["usage"] = {**others, **usage}
            else:
                value["spent"] = usage
        return value

    def to_metadata(self) -> dict[str, Any]:
        """The record in small: one listing of these answers status, monitor, metrics and report."""
        ours = self.__dict__
        small = {"status": self.state, "batch_id": self.batch_id, "updated": self.updated}
        small |= _present(ours, _SMALL.get(self.state, _ALL_SMALL))
        for name, limit in _CLIPPED:
            if name in small:
                small[name] = clip_bytes(small[name], limit)
        if self.state == "failed" and self.error is not None:
            # The error has what the others leave: with ids of the usual length, all it needs.
            room = MAX_METADATA_BYTES - len(json.dumps(small, separators=(",", ":"))) - 10
            small["error"] = clip_bytes(self.error, min(_ERROR_BYTES, room))
        return small

    def entry(self, key: str) -> Entry:
        """What is to be stored under ``key``. Unknown fields are carried along as far as a store
        takes them: what somebody has put there must not keep the pages of a batch from ending."""
        value = dump_json(self.to_value())
        if len(value) * 4 > MAX_VALUE_BYTES and len(value.encode()) > MAX_VALUE_BYTES:
            value = dump_json(self.changed(extra={}, detail={}).to_value())
        return Entry(key, value, self.to_metadata())

    def changed(self, **changes: Any) -> PageStatus:
        """The record with some fields changed."""
        return self._made(self.__dict__ | changes)

    @classmethod
    def _made(cls, fields: dict[str, Any]) -> PageStatus:
        """A record of exactly those fields, at a fifth of what the constructor of a frozen class
        takes, which sets them one by one: it is paid several times a page."""
        if len(fields) != len(_NO_FIELDS):  # all of them are there, and perhaps one that is none
            raise TypeError(f"no fields of a status: {fields.keys() ^ _NO_FIELDS.keys()}")
        status = object.__new__(cls)
        object.__setattr__(status, "__dict__", fields)
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
        """The page waiting for another attempt. Of the last one the usage stays; the rest is in the
        logs."""
        return self.changed(
            state="queued",
            updated=queued_at,
            priority=priority,
            queued_at=queued_at,
            **_NO_ATTEMPT,
        )

    def as_cancelled(self, now: str) -> PageStatus:
        """The page as one that will not be worked on."""
        return self.changed(state="cancelled", updated=now, **_NO_ATTEMPT)


#: Every field with its default.
_NO_FIELDS = PageStatus("", "", "").__dict__.copy()
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


def _state(value: object) -> str:
    # A state that we do not know is taken for one that somebody has to look at.
    return value if isinstance(value, str) and value in PAGE_STATES else "failed"


def _nothing(value: object) -> None:
    """Reads a name of ours whose value is known from elsewhere: it is no unknown field."""


#: By the names in the record: the field of :class:`PageStatus`, and what reads it.
_Readers = Mapping[str, tuple[str, Callable[[object], Any]]]
_RECORD: _Readers = {
    "status": ("state", _nothing),
    "batch_id": ("batch_id", id_field),
    "updated": ("updated", time_field),
    "attempts": ("attempts", count_field),
    "path": ("path", text_field),
    "uploaded": ("uploaded", time_field),
    "lapses": ("lapses", count_field),
    "superseded_by": ("superseded_by", id_field),
}
_OUTCOME: _Readers = {
    "success": ("", _nothing),
    "started": ("started", time_field),
    "completed": ("completed", time_field),
    "duration_ms": ("duration_ms", count_field),
    "changes": ("changes", count_field),
    "confidence": ("confidence", number_field),
}
#: The parts of a record, each of which goes with a state. We write only the part of its own state.
#: Where somebody else wrote several, a later one in this order overrules the earlier.
_PARTS: dict[str, _Readers] = {
    "error": {**_OUTCOME, "message": ("error", text_field), "code": ("code", text_field)},
    "result": _OUTCOME,
    "processing": {
        "claim": ("claim", text_field),
        "lease": ("lease", time_field),
        "started": ("started", time_field),
        "current_step": ("step", text_field),
        "progress": ("progress", number_field),
    },
    "queued": {
        "priority": ("priority", priority_field),
        "queued_at": ("queued_at", time_field),
    },
}
_PART_NAMES = frozenset(name for part in _PARTS.values() for name in part) | {"timestamp", "usage"}
_USAGE: _Readers = {
    "tokens_in": ("tokens_in", count_field),
    "tokens_out": ("tokens_out", count_field),
    "cost": ("cost", cost_field),
}
_PART_OF_STATE = {
    "queued": "queued",
    "processing": "processing",
    "done": "result",
    "failed": "error",
}
#: What the small form has of a state's fields, beside the three that all have.
_ALL_SMALL = ("attempts", "path", "uploaded", "superseded_by")
_ENDED_SMALL = (*_ALL_SMALL, "started", "completed", "duration_ms", *Usage._fields)
_SMALL = {
    "queued": (*_ALL_SMALL, "priority", "queued_at"),
    "processing": (*_ALL_SMALL, "started", "step", "progress", "lease"),
    "done": (*_ENDED_SMALL, "changes", "confidence"),
    "failed": (*_ENDED_SMALL, "code"),
}


def _read_into(fields: dict[str, Any], told: object, readers: _Readers) -> dict[str, Any]:
    """Take over what ``told`` says of the fields, if it is an object; returns the rest of it."""
    if not isinstance(told, dict):
        return {}
    rest = {}
    for name, value in told.items():
        if name not in readers:
            rest[name] = value
            continue
        field_name, read = readers[name]
        if (known := read(value)) is not None:
            fields[field_name] = known
    return rest


def _read_outcome(fields: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Take over the usage of an outcome, and its time by the name that an error has for it; returns
    the unknown fields of the usage, as a field of the part."""
    fields["completed"] = fields["completed"] or time_field(told.get("timestamp"))
    usage = told.get("usage")
    if not isinstance(usage, dict):
        return {} if usage is None else {"usage": usage}
    if usage:  # it goes before what is noted beside the parts, and stands for all attempts
        fields.update(dict.fromkeys(Usage._fields))
    others = _read_into(fields, usage, _USAGE)
    return {"usage": others} if others else {}


def _present(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the fields that are there."""
    return {name: told for name in names if (told := fields[name]) is not None}
