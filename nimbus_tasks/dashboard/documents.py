"""What the page shows, as data: looks at the store, folded and put into words here.

Whatever comes from outside (titles, paths, steps, errors, codes) is cleaned and cut to what a page
can show. Figures are in the words of a terminal; what the page adds to them is time passing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nimbus_tasks.batch.list import list_batches
from nimbus_tasks.core import batches
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import seconds_between, to_iso, utc_now
from nimbus_tasks.core.errors import NotFoundError, UsageError
from nimbus_tasks.core.failures import FailureGroup, group_failures
from nimbus_tasks.core.keys import is_id, logs_key, page_id_for, superseded_key
from nimbus_tasks.core.lifecycle import UNKNOWN_CODE
from nimbus_tasks.core.logs import LogEntry, read_logs
from nimbus_tasks.core.pages import PageInfo, read_statuses, status_or_none
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.ui.figures import milliseconds, moment, percent, rate, time_left
from nimbus_tasks.ui.text import shown

Document = dict[str, Any]

#: What a person looks through; the report has all of it.
MOST_BATCHES, MOST_IN_FLIGHT, MOST_FAILURES, MOST_GROUPS, MOST_LOG_ENTRIES = 200, 30, 50, 12, 200
_NAME, _TEXT, _LONG_TEXT = 300, 300, 2000


def name_of(page: PageInfo) -> str:
    """What a person knows the page by; of a long path the end says more than the root."""
    return shown(page.name, _NAME, keep_end=True)


#: A project that nothing was uploaded to yet.
NO_BATCHES: Document = {"batches": [], "more": 0}


def look_at_all(project: Project) -> Callable[[Store], Document]:
    """A look at the project's batches, the newest first."""

    def look(store: Store) -> Document:
        rows = list_batches(project, store)
        return {
            "batches": [
                {**row.to_json(), "created_at": moment(row.created)} for row in rows[:MOST_BATCHES]
            ],
            "more": max(0, len(rows) - MOST_BATCHES),
        }

    return look


class LookAtBatch:
    """A look at one batch. A batch that has ended is not folded again until its record changes:
    whatever happens to it is written there first."""

    def __init__(self, project: Project, batch_id: str) -> None:
        self._project = project
        self._batch_id = batch_id
        self._last: tuple[BatchHead, Document] | None = None

    def __call__(self, store: Store) -> Document:
        with store.snapshot() as reading:
            head = exact(reading, self._project.project_id, self._batch_id)
            if self._last is not None and self._last[0] == head and head.is_final:
                return self._last[1]
            view = batches.look(reading, head, utc_now(), engine=self._project.engine)
            # The look has the latest failures only; the groups are of all of them.
            is_all = view.tally.states["failed"] <= len(view.failures)
            failed = view.failures if is_all else batches.pages_of(reading, head)
            groups = group_failures(failed, most=MOST_GROUPS)
        document = batch_document(view, groups, to_iso(utc_now()))
        self._last = (head, document) if view.is_finished else None
        return document


def exact(store: KeyValues, project_id: str, batch_id: str) -> BatchHead:
    """The batch of exactly that id: a page that asks knows which it means. Raises
    :class:`NotFoundError`."""
    try:
        found = batches.find(store, project_id, batch_id)
    except (NotFoundError, UsageError):
        found = None
    if found is None or found.batch_id != batch_id:
        raise NotFoundError(f"there is no batch {shown(batch_id, 60)} in this project")
    return found


def batch_document(view: BatchView, groups: Sequence[FailureGroup], now: str) -> Document:
    """What the page shows of a batch: the fields of ``status --json``, and those below."""
    tally, timing, stalled = view.tally, view.tally.timing(), {p.page_id for p in view.stalled}
    is_open = not view.is_finished
    return {
        **view.to_json(),
        "created_at": moment(view.head.created),
        "reason": shown(view.head.reason, _TEXT),
        "ended": tally.ended,
        "percent": percent(tally.ended, tally.total),
        "rate": rate(view.pace.per_second) if is_open else "",
        "time_left": time_left(view.pace) if is_open else "",
        "average": "" if timing.average_ms is None else milliseconds(timing.average_ms),
        "p95": "" if timing.p95_ms is None else milliseconds(timing.p95_ms),
        "in_flight": [
            _in_flight(page, now, is_stalled=page.page_id in stalled)
            for page in view.in_flight_by_urgency[:MOST_IN_FLIGHT]
        ],
        "failures": [_failure(page) for page in view.failures[:MOST_FAILURES]],
        "groups": [_group(group, tally.errors[group.code]) for group in groups],
        "next": [
            {"why": shown(step.why, _TEXT), "command": shown(step.command, 500)}
            for step in next_steps_of(view, groups)
            if not step.is_to_watch  # which is what the page does
        ],
        "can_retry": any(group.count > group.superseded for group in groups),
        "can_cancel": is_open and view.status != "cancelling",
    }


def _page_id(page: PageInfo) -> str | None:
    """The id to ask for its log by; somebody else may have written any key."""
    return page.page_id if is_id(page.page_id) else None


def _in_flight(page: PageInfo, now: str, *, is_stalled: bool) -> Document:
    status = page.status
    since = status.get("lease") if is_stalled else status.get("started")
    return {
        "page_id": _page_id(page),
        "name": name_of(page),
        "step": shown(status.get("step") or "begins", _TEXT),
        "progress": round(min(100.0, max(0.0, status.get("progress") or 0))),
        "stalled": is_stalled,
        "seconds": seconds_between(since, now),
    }


def _failure(page: PageInfo) -> Document:
    status = page.status
    return {
        "page_id": _page_id(page),
        "name": name_of(page),
        "code": shown(status.get("code") or UNKNOWN_CODE, 60),
        "error": shown(status.get("error"), _TEXT),
        "attempts": status.get("attempts"),
        "at": moment(status.get("completed") or ""),
    }


def _group(group: FailureGroup, with_code: int) -> Document:
    """``retry`` is the code as the records have it, for a retry to compare, or none where all of
    its pages belong to a later batch; ``with_code`` is how many pages failed with that code, in
    this group and others."""
    return {
        "code": shown(group.code, 60),
        "retry": None if group.is_rest or group.count == group.superseded else group.code,
        "with_code": with_code,
        "message": shown(group.message, _TEXT),
        "count": group.count,
        "transient": group.looks_transient,
        "examples": [name_of(page) for page in group.examples[:3]],
        "is_rest": group.is_rest,
    }


def page_log(project: Project, batch_id: str, page: str) -> Callable[[Store], Document]:
    """The log of a page of the batch, which ``page`` names by its id or its path: its last entries
    and what it is in. Raises :class:`NotFoundError`."""

    def look(store: Store) -> Document:
        with store.snapshot() as reading:
            page_id, status = _find_page(reading, project.project_id, batch_id, page)
            entries = read_logs(reading.get(logs_key(project.project_id, page_id)))
        last = entries[-MOST_LOG_ENTRIES:]
        return {
            "page_id": page_id,
            "name": name_of(PageInfo(page_id, {"path": status.path})),
            "status": status.state,
            "attempts": status.attempts,
            "code": shown(status.code, 60),
            "error": shown(status.error, _LONG_TEXT),
            "earlier": len(entries) - len(last),
            "entries": [_log_entry(entry) for entry in last],
        }

    return look


def _find_page(
    store: KeyValues, project_id: str, batch_id: str, page: str
) -> tuple[str, PageStatus]:
    asked = [page] if is_id(page) else []
    for page_id in (*asked, page_id_for(project_id, page)):
        status = read_statuses(store, project_id, [page_id]).get(page_id)
        if status is None or status.batch_id != batch_id:
            taken = store.get(superseded_key(project_id, batch_id, page_id))
            status = status_or_none(taken) if taken is not None else None
        if status is not None:
            return page_id, status
    raise NotFoundError(
        f"{batch_id} has no page {shown(page, 80)}",
        advice="Give a page id, or a path as nimbus.batch.report has it.",
    )


def _log_entry(entry: LogEntry) -> Document:
    """An entry in words; somebody else may have written anything."""
    if not isinstance(entry, dict):
        return {"at": "", "level": "info", "step": "", "message": shown(entry, _LONG_TEXT)}
    took = entry.get("duration_ms")
    level = entry.get("level")
    return {
        "at": moment(entry["timestamp"]) if isinstance(entry.get("timestamp"), str) else "",
        "level": level if level in ("warning", "error") else "info",
        "step": shown(entry.get("step"), 120),
        "message": shown(entry.get("message"), _LONG_TEXT),
        "took": milliseconds(took) if isinstance(took, (int, float)) else "",
    }
