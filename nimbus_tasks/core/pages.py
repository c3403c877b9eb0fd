"""Status records by page id, whole or in small: what every reader and writer of them needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from nimbus_tasks.core.columns import Columns, columns_of
from nimbus_tasks.core.keys import are_ids, is_id, last_part, status_key, status_prefix
from nimbus_tasks.core.leases import has_lapsed
from nimbus_tasks.core.records import PageStatus, read_status
from nimbus_tasks.core.small_forms import small_forms
from nimbus_tasks.core.wire import UnreadableRecordError
from nimbus_tasks.kv.store import Entry, KeyValues

T = TypeVar("T")

#: Whole records that are in memory at a time.
_HELD = 1000
#: A bulk read of Workers KV takes so many.
VALUES_A_READ = 100


class PageInfo(NamedTuple):
    """A page and the small form of its status record."""

    page_id: str
    status: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What a person knows the page by: its path, or else its id."""
        return self.status.get("path") or self.page_id

    def has_lapsed(self, now: str) -> bool:
        """Whether it is in flight and its holder was not heard of for a whole lease."""
        status = self.status
        is_in_flight = status["status"] == "processing"
        return is_in_flight and has_lapsed(status.get("lease"), status.get("updated"), now)


class PageGroup(NamedTuple):
    """Some pages of a listing, at most a thousand: their ids and the small forms of their statuses,
    side by side, and the same statuses by columns."""

    page_ids: list[str]
    statuses: list[Mapping[str, Any]]
    columns: list[Columns]

    @classmethod
    def of(cls, pages: Iterable[PageInfo]) -> PageGroup:
        """Those pages as a group."""
        some = list(pages)
        statuses = [page.status for page in some]
        return cls([page.page_id for page in some], statuses, columns_of(statuses))

    @property
    def pages(self) -> Iterator[PageInfo]:
        """One by one."""
        return map(PageInfo, self.page_ids, self.statuses)

    def values(self, field: str) -> set[Any]:
        """What the pages have in that field, each once."""
        return set().union(*(columns.get(field, ()) for columns in self.columns))

    def where(self, field: str, value: object) -> PageGroup:
        """Those of them that have that value in a field."""
        found = self.values(field)
        if found == {value}:
            return self
        if value not in found:
            return _EMPTY
        at = [number for number, one in enumerate(self.statuses) if one.get(field) == value]
        return PageGroup.of(PageInfo(self.page_ids[n], self.statuses[n]) for n in at)


_EMPTY = PageGroup([], [], [])


def list_pages(
    store: KeyValues, project_id: str, batch_id: str | None = None
) -> Iterator[PageInfo]:
    """The pages that have a status, by one listing: the project's, or those of one batch."""
    return one_by_one(list_groups(store, project_id, batch_id))


def list_groups(
    store: KeyValues, project_id: str, batch_id: str | None = None
) -> Iterator[PageGroup]:
    """The same, many at a time."""
    groups = small_statuses(store, status_prefix(project_id))
    return groups if batch_id is None else (g.where("batch_id", batch_id) for g in groups)


def one_by_one(groups: Iterable[PageGroup]) -> Iterator[PageInfo]:
    """The pages of the groups."""
    return chain.from_iterable(group.pages for group in groups)


def small_statuses(store: KeyValues, prefix: str) -> Iterator[PageGroup]:
    """The small forms of the statuses under ``prefix``. Where a writer left no metadata the values
    are read, many at a time; a record of which neither can be read counts as a failed page of no
    batch. Keys that end in no page id are somebody else's, and left out."""
    bare: list[str] = []
    for keys, metadata in store.scan_many(prefix):
        page_ids = [key[len(prefix) :] for key in keys]
        forms, columns = small_forms(metadata)
        statuses = [form for form in forms if form is not None]
        if len(statuses) == len(keys) and are_ids(page_ids):
            yield PageGroup(page_ids, statuses, columns)
            continue
        listed = [(i, form) for i, form in zip(page_ids, forms, strict=True) if is_id(i)]
        yield PageGroup.of(PageInfo(i, form) for i, form in listed if form is not None)
        bare += [prefix + page_id for page_id, form in listed if form is None]
    for at in range(0, len(bare), VALUES_A_READ):
        yield PageGroup.of(_from_values(store, bare[at : at + VALUES_A_READ]))


def _from_values(store: KeyValues, keys: list[str]) -> Iterator[PageInfo]:
    for key, entry in store.get_many(keys).items():
        try:
            small = read_status(entry).to_metadata()
        except UnreadableRecordError as error:
            small = {"status": "failed", "batch_id": "", "error": str(error), "code": "unreadable"}
        yield PageInfo(last_part(key), small)


def in_groups(items: Iterable[T]) -> Iterator[list[T]]:
    """The items, at most a thousand at a time: a batch may have more than fit into memory."""
    remaining = iter(items)
    while some := list(islice(remaining, _HELD)):
        yield some


def read_statuses(
    store: KeyValues, project_id: str, page_ids: Iterable[str]
) -> dict[str, PageStatus]:
    """The statuses of those pages that have a readable one; ``verify`` names the others."""
    keys = [status_key(project_id, page_id) for page_id in page_ids]
    statuses = {}
    for key, value in store.get_values(keys).items():
        status = status_or_none(Entry(key, value))
        if status is not None:
            statuses[last_part(key)] = status
    return statuses


def status_entries(project_id: str, statuses: Mapping[str, PageStatus]) -> list[Entry]:
    """The status records of some pages, by page id, as they are to be stored."""
    return [status.entry(status_key(project_id, page_id)) for page_id, status in statuses.items()]


def status_or_none(entry: Entry) -> PageStatus | None:
    """The status of an entry, or ``None`` where it cannot be read."""
    try:
        return read_status(entry)
    except UnreadableRecordError:
        return None
