"""What a worker does for a project beside its pages: it takes up what others have lost, and writes
down what batches have come to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextlib import suppress

from nimbus_tasks.core import batches
from nimbus_tasks.core.claims import Claim
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import NotFoundError, StoreError
from nimbus_tasks.core.lapses import find_lapsed, take_up_lapsed
from nimbus_tasks.core.lifecycle import TERMINAL_PAGE_STATES, is_finished
from nimbus_tasks.core.pages import PageInfo, list_groups, list_pages, one_by_one
from nimbus_tasks.core.queue import find_unqueued, put_back
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.worker.options import Worked


class Upkeep:
    """The upkeep of one batch, or of all. What it does is counted in ``worked``.

    ``patience`` is for how many seconds a lapsed claim has to be seen before it is taken up. Where
    no lock keeps two workers from doing so at the same moment, each is given another patience.
    """

    def __init__(
        self,
        store: Store,
        project_id: str,
        batch_id: str | None,
        worked: Worked,
        patience: float = 0.0,
    ) -> None:
        self._store = store
        self._project_id = project_id
        self._batch_id = batch_id
        self._worked = worked
        self._patience = patience
        #: Since when lapsed claims are seen, by page id.
        self._lapsed_since: dict[str, float] = {}
        #: Batches whose records do not say yet what their pages have come to.
        self._open: set[str] = set()
        #: Those of them whose records do not say either that work has begun; their first pages.
        self._begun: dict[str, list[str]] = {}

    def begin(self, claims: Iterable[Claim]) -> bool:
        """Note that pages are claimed; whether a batch has begun with them, so that
        :meth:`write_begun` has something to write."""
        pages: dict[str, list[str]] = {}
        for claim in claims:
            if claim.status.batch_id not in self._open:
                pages.setdefault(claim.status.batch_id, []).append(claim.page_id)
        self._begun |= pages
        self._open |= pages.keys()
        return bool(pages)

    def write_begun(self) -> None:
        """Write into the batch records that work has begun."""
        while self._begun:
            batch_id, page_ids = self._begun.popitem()
            self._save_begun(batch_id, page_ids)

    def save(self) -> None:
        """Write into the records of the batches that were worked on what they have come to."""
        self._begun.clear()
        while self._open:
            self._save(self._open.pop(), self._snapshot)

    def close(self) -> None:
        """The same at the end, and of batches that others have ended without saying so."""
        # What others did meanwhile counts as well: batches that were open may have ended.
        self._open |= {b for b, s in self._worked.batches.items() if not is_finished(s)}
        self.save()
        with suppress(StoreError):
            with self._store.snapshot() as reading:
                heads = batches.heads(reading, self._project_id)
                tallies = batches.fold_all(reading, self._project_id, heads)
            for head in heads:
                tally = tallies.get(head.batch_id)
                if tally is not None and is_finished(tally.status(head.intent)):
                    with self._store.transaction() as tx:
                        self._snapshot(tx, head.batch_id)

    def unfinished_pages(self) -> list[PageInfo]:
        """The pages that have not ended. One listing; none where every batch has ended, since no
        page of such a batch changes unasked."""
        with self._store.snapshot() as reading:
            heads = batches.heads(reading, self._project_id)
            if heads and not reading.lag_seconds and all(head.is_final for head in heads):
                return []
            listed = list_pages(reading, self._project_id, self._batch_id)
            return [page for page in listed if page.status["status"] not in TERMINAL_PAGE_STATES]

    def take_up_lapsed(
        self, pages: Iterable[PageInfo] | None = None, ours: Container[str] = ()
    ) -> bool:
        """Queue those of ``pages`` (or of all) whose holder is not heard of; whether any was. Not
        ``ours``: a computer that was asleep, or whose clock was set, has not renewed them yet."""
        now = utc_now()
        if pages is None:
            groups = list_groups(self._store, self._project_id, self._batch_id)
            pages = one_by_one(group.where("status", "processing") for group in groups)
        found = find_lapsed(pages, now)
        lapsed = self._seen_long_enough({i: b for i, b in found.items() if i not in ours})
        if not lapsed:
            return False
        with self._store.transaction() as tx:
            queued, hopeless = take_up_lapsed(tx, self._project_id, lapsed, now)
        self._worked.taken_up += len(queued)
        self._worked.failed += len(hopeless)
        self._open |= {lapsed[page_id] for page_id in hopeless}
        return bool(queued)

    def search_again_in(self) -> float | None:
        """Seconds until the lapsed claims that are waited for may be taken up; ``None`` if there
        are none."""
        return self._patience if self._lapsed_since else None

    def _seen_long_enough(self, lapsed: Mapping[str, str]) -> Mapping[str, str]:
        if not self._patience:
            return lapsed
        now = time.monotonic()
        since = {page_id: self._lapsed_since.get(page_id, now) for page_id in lapsed}
        due = {i: batch for i, batch in lapsed.items() if now - since[i] >= self._patience}
        self._lapsed_since = {i: at for i, at in since.items() if i not in due}
        return due

    def queue_lost(self, pages: Iterable[PageInfo]) -> bool:
        """Put back those of ``pages`` that are queued and in no queue, where nobody would ever
        claim them; whether there were any."""
        if not find_unqueued(self._store, self._project_id, pages, utc_now()):
            return False
        with self._store.transaction() as tx:
            now_there = list_pages(tx, self._project_id, self._batch_id)
            lost = find_unqueued(tx, self._project_id, now_there, utc_now())
            put_back(tx, self._project_id, lost)
        return bool(lost)

    def _save_begun(self, batch_id: str, page_ids: Collection[str]) -> None:
        def write(tx: KeyValues, batch_id: str) -> str:
            begun = batches.save_begun(tx, self._project_id, batch_id, page_ids)
            return begun or self._snapshot(tx, batch_id)

        self._save(batch_id, write)

    def _snapshot(self, tx: KeyValues, batch_id: str) -> str:
        return batches.save_snapshot(tx, self._project_id, batch_id)

    def _save(self, batch_id: str, write: Callable[[KeyValues, str], str]) -> None:
        try:
            with self._store.transaction() as tx:
                self._worked.batches[batch_id] = write(tx, batch_id)
        except (NotFoundError, StoreError):
            pass  # its record is gone or damaged; its pages are worked on all the same
