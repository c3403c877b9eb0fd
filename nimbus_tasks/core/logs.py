"""``logs:{project}:{page}``: what happened to a page, attempt after attempt; nothing is erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nimbus_tasks.core.keys import last_part, logs_key, logs_prefix
from nimbus_tasks.core.pages import VALUES_A_READ
from nimbus_tasks.core.wire import UnreadableRecordError, count_field, dump_json, load_object
from nimbus_tasks.kv.store import MAX_VALUE_BYTES, Entry, KeyValues

LogEntry = Mapping[str, Any]


def log_entry(
    timestamp: str,
    step: str,
    message: str,
    *,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry; ``level`` is ``info``, ``warning`` or ``error``. A step that has ended gets its
    ``duration_ms`` as well."""
    entry: dict[str, Any] = {
        "timestamp": timestamp,
        "level": level,
        "step": step,
        "message": message,
    }
    if data:
        entry["data"] = dict(data)
    return entry


def append_logs(
    tx: KeyValues, project_id: str, new: Mapping[str, Sequence[LogEntry]]
) -> list[Entry]:
    """The log records of some pages, by page id, with ``new`` entries at their ends."""
    stored = tx.get_values([logs_key(project_id, page_id) for page_id in new])
    appended = []
    for page_id, added in new.items():
        key = logs_key(project_id, page_id)
        record = _record(Entry(key, stored[key]) if key in stored else None, page_id)
        # A write whose answer was lost is made again: what it added already is not added twice.
        there = record["entries"][-2 * len(added) :]
        entries = [*record["entries"], *(entry for entry in added if entry not in there)]
        value = dump_json({**record, "entries": entries})
        while len(value) * 4 > MAX_VALUE_BYTES and len(entries) > 1:
            # A log that no store takes any more must not keep its page from ending: the oldest go.
            entries = entries[len(entries) // 2 :]
            value = dump_json({**record, "entries": entries})
        appended.append(Entry(key, value, {"entries": len(entries)}))
    return appended


def read_logs(entry: Entry | None) -> list[LogEntry]:
    """The entries of a log record; none where there is no record."""
    return [] if entry is None else list(_record(entry, last_part(entry.key))["entries"])


def log_counts(store: KeyValues, project_id: str) -> dict[str, int]:
    """How many entries each page's log has, from the value where its writer left no metadata."""
    counts: dict[str, int] = {}
    bare: list[str] = []
    prefix = logs_prefix(project_id)
    for keys, metadata in store.scan_many(prefix):
        found = [count_field((one or {}).get("entries")) for one in metadata]
        for key, count in zip(keys, found, strict=True):
            if count is None:
                bare.append(key)
            else:
                counts[key[len(prefix) :]] = count
    for at in range(0, len(bare), VALUES_A_READ):
        for key, entry in store.get_many(bare[at : at + VALUES_A_READ]).items():
            counts[key.removeprefix(prefix)] = len(read_logs(entry))
    return counts


def _record(entry: Entry | None, page_id: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"page_id": page_id, "entries": []}
    if entry is None:
        return empty
    try:
        record = load_object(entry)
    except UnreadableRecordError:
        # What cannot be read cannot be carried on; the new entries matter more than the old bytes.
        return empty
    if not isinstance(record.get("entries"), list):
        record["entries"] = []
    return record
