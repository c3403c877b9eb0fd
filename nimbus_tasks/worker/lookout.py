"""Is more work to be expected, though the queue is empty?

An upload may still be sending, or another worker may have died with pages in hand, which come back
when its leases end. If the last worker ended at once, a person would have to notice that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import LONGEST_LEASE_SECONDS, iso_after, now_iso, seconds_between
from nimbus_tasks.core.leases import CLOCK_SKEW_SECONDS
from nimbus_tasks.core.lifecycle import Intent
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.core.queue import is_newer, item_batch, queue_items
from nimbus_tasks.kv.store import KeyValues

#: How long nothing may come of an upload before a worker no longer waits for it.
UPLOAD_SILENT_SECONDS = 15.0


class _Claim(NamedTuple):
    """A claim as a listing has it: when it was made, which tells it from others, and when it ends;
    both as the records write times."""

    started: str | None
    lease: str


class Lookout:
    """Looks at what others do, in one batch or in all. It remembers what it has seen before."""

    def __init__(self, project_id: str, batch_id: str | None) -> None:
        self._project_id = project_id
        self._batch_id = batch_id
        self._first_seen: dict[str, _Claim] = {}

    def start_over(self) -> None:
        """Forget which claims were renewed: work came in between, and their holders may have gone
        meanwhile."""
        self._first_seen.clear()

    def what_is_expected(self, store: KeyValues, pages: Collection[PageInfo]) -> str | None:
        """What is worth waiting for, in words; ``None`` if nothing is. ``pages`` are those that
        have not ended."""
        if self._is_being_uploaded(store):
            return "the upload of more pages"
        if self._has_silent_claims(pages):
            return "the leases of a worker that may be gone"
        if self._is_arriving(store, pages):
            return "pages that were queued just now, and are not all to be seen yet"
        return None

    def _is_being_uploaded(self, store: KeyValues) -> bool:
        now = now_iso()
        for head in batches.heads(store, self._project_id):
            if head.intent == Intent.UPLOAD and self._batch_id in (None, head.batch_id):
                last_change = batches.fold(store, head).last_change or head.created
                silent = seconds_between(last_change, now)
                # A time of the future, or none, does not tell when somebody was at it.
                if silent is not None and -CLOCK_SKEW_SECONDS < silent < UPLOAD_SILENT_SECONDS:
                    return True
        return False

    def _is_arriving(self, store: KeyValues, pages: Collection[PageInfo]) -> bool:
        """Whether reads lag, and some of what was queued lately cannot be claimed yet."""
        if not store.lag_seconds:
            return False
        # A queue of messages shows neither those that are delayed nor those in the hands of a
        # worker that has vanished: then any page counts. Else what is older than the lag is claimed
        # or put back at the next look, so twice the lag lasts until then.
        since = "" if store.may_hide(1) else iso_after(-2 * store.lag_seconds)
        for info in queue_items(store, self._project_id):
            if is_newer(info.key, since) and self._batch_id in (None, item_batch(store, info)):
                return True
        return any(
            page.status["status"] == "queued" and (page.status.get("updated") or "") > since
            for page in pages
        )

    def _has_silent_claims(self, pages: Collection[PageInfo]) -> bool:
        """Whether there are claims that nobody has renewed since we first saw them. A renewed claim
        has a holder that is alive, who will see to it. A new claim in the place of another is no
        renewal: on KV it may have been written over an outcome, so that nobody holds it."""
        last = iso_after(LONGEST_LEASE_SECONDS)
        claims = {
            page.page_id: _Claim(page.status.get("started"), page.status["lease"])
            for page in pages
            # Without a lease, or with one longer than any can be, nobody knows how long to wait.
            if page.status["status"] == "processing" and "" < page.status.get("lease", "") <= last
        }
        first = self._first_seen
        for page_id, claim in claims.items():
            if page_id not in first or first[page_id].started != claim.started:
                first[page_id] = claim
        return any(claim.lease <= first[page_id].lease for page_id, claim in claims.items())
