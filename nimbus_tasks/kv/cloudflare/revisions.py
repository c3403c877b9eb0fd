"""When an entry was written, as KV shows it: the time of change in its metadata, or ``rev`` where
it has none. Of two answers for a key the one with the higher revision is the newer.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from nimbus_tasks.kv.store import MAX_METADATA_BYTES, Entry, Metadata

#: Values of records that name their last change in themselves are small.
_SMALL_VALUE = 16_384


def revision_of(metadata: Metadata | None) -> str:
    """What orders the versions of an entry: the time of its last change. Empty if it names none."""
    for name in ("rev", "updated"):
        told = (metadata or {}).get(name)
        if isinstance(told, str):
            return told
    return ""


def stored_revision(entry: Entry) -> str:
    """The revision of an entry, from its value where somebody wrote it who leaves no metadata."""
    revision = revision_of(entry.metadata)
    if not entry.value or len(entry.value) > _SMALL_VALUE:
        return revision
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError):
        return revision
    told = value.get("updated") if isinstance(value, dict) else None
    return max(revision, told) if isinstance(told, str) else revision


def moment(seconds: float) -> str:
    """Seconds since 1970 as the records write a time."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def stamped(entry: Entry, revision: str) -> Entry:
    """The entry with its revision in the metadata, unless it has a time of change there."""
    if entry.metadata is None or "updated" in entry.metadata:
        return entry
    stamped = {**entry.metadata, "rev": revision}
    if len(json.dumps(stamped, separators=(",", ":"))) > MAX_METADATA_BYTES:
        return entry
    return entry._replace(metadata=stamped)


def bare(entry: Entry) -> Entry:
    """The entry as it was given: without the revision."""
    return entry._replace(metadata=without_revision(entry.metadata))


def without_revision(metadata: Metadata | None) -> Metadata | None:
    """Metadata as they were given."""
    if metadata is None or "rev" not in metadata:
        return metadata
    return {name: value for name, value in metadata.items() if name != "rev"}
