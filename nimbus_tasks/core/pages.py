"""Status records by page id: the two lines that every writer of them needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nimbus_tasks.core.keys import last_part, status_key
from nimbus_tasks.core.records import PageStatus, read_status
from nimbus_tasks.core.wire import UnreadableRecordError
from nimbus_tasks.kv.store import Entry, KeyValues


def read_statuses(
    store: KeyValues, project_id: str, page_ids: Iterable[str]
) -> dict[str, PageStatus]:
    """The statuses of those pages that have a readable one; ``verify`` names the others."""
    keys = [status_key(project_id, page_id) for page_id in page_ids]
    statuses = {}
    for key, entry in store.get_many(keys).items():
        status = status_or_none(entry)
        if status is not None:
            statuses[last_part(key)] = status
    return statuses


def status_entries(project_id: str, statuses: Mapping[str, PageStatus]) -> list[Entry]:
    """What is to be stored for some pages."""
    return [status.entry(status_key(project_id, page_id)) for page_id, status in statuses.items()]


def status_or_none(entry: Entry) -> PageStatus | None:
    """The status of an entry, or ``None`` where it cannot be read."""
    try:
        return read_status(entry)
    except UnreadableRecordError:
        return None
