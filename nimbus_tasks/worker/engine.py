"""The worker: one thread owns the store and does all writing, others process pages.

Outcomes, leases, progress and new claims are written in one transaction at a time, a group of
them together, so that a page costs a part of a commit and not three.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass

from nimbus_tasks.core.batches import cancelled_batches
from nimbus_tasks.core.claims import (
    Claim,
    Outcome,
    claim_pages,
    finish_pages,
    release_claims,
    renew_claims,
)
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import (
    ProcessorUnusableError,
    StoreUnreachableError,
)
from nimbus_tasks.core.lapses import is_suspect
from nimbus_tasks.core.queue import count_items
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.processors import Processor
from nimbus_tasks.worker.attempts import AttemptPool
from nimbus_tasks.worker.contested import Contested
from nimbus_tasks.worker.lookout import Lookout
from nimbus_tasks.worker.options import Options, Watcher, Worked
from nimbus_tasks.worker.pace import AHEAD_SECONDS, Pace
from nimbus_tasks.worker.upkeep import Upkeep

#: Changes of step and progress are written at most this often.
PROGRESS_SECONDS = 1.0
#: Pauses between looks at an empty queue, and between listings for claims that have lapsed.
IDLE_SECONDS, LOOK_SECONDS = 0.25, 2.0
#: The same of a worker that is busy: a page that takes an hour must not keep others waiting.
LAPSED_SECONDS = 30.0
#: How long a store may be out of reach before a worker gives up.
OUTAGE_SECONDS = 600.0
#: Between counts of the queue, which is a listing of all of it.
COUNT_SECONDS = 5.0
#: Step and progress of a page that waits for a thread.
_NOT_BEGUN: tuple[str | None, float] = (None, 0.0)


@dataclass
class _Held:
    """A claim in hand; when its lease was renewed, and which step and progress others see."""

    claim: Claim
    renewed: float
    shown: tuple[str | None, float] = _NOT_BEGUN


class Worker:
    """Works until the queue is empty. :meth:`stop` may be called from a signal handler."""

    def __init__(
        self,
        store: Store,
        project_id: str,
        processor: Processor,
        options: Options,
        watcher: Watcher,
    ) -> None:
        self._store = store
        self._project_id = project_id
        self._options = options
        self._watcher = watcher
        self._pool = AttemptPool(
            processor, options.concurrency, options.max_attempts, options.timeout
        )
        self._pace = Pace(options.concurrency, store.write_interval, options.first_ahead)
        self._lookout = Lookout(project_id, options.batch_id)
        shared_lag = 0.0 if store.serves_batches else store.lag_seconds
        self._contested = Contested(shared_lag)
        self._in_hand: dict[str, _Held] = {}
        self._ended: list[Outcome] = []
        self._last_exchange = self._last_progress = 0.0
        self._queue_is_empty = False
        self._lost_since: float | None = None
        self._to_release: list[Claim] = []
        self._stops = self._stops_told = 0
        self._next_look = self._next_search = self._next_count = 0.0
        self._next_word = math.inf
        self.worked = Worked()
        patience = random.uniform(0, shared_lag)
        self._upkeep = Upkeep(store, project_id, options.batch_id, self.worked, patience)

    def stop(self) -> None:
        """Claim no more and end when the pages in flight have ended; called again: give those
        back to the queue and end now."""
        self._stops += 1

    @property
    def unusable(self) -> ProcessorUnusableError | None:
        """Why the processor could do no page, if that is what ended the work."""
        return self._pool.unusable

    @property
    def was_stopped(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._stops > 0

    @property
    def is_to_end_now(self) -> bool:
        """Whether it was asked again."""
        return self._stops > 1

    def run(self) -> Worked:
        """Work until there is nothing left, or until it is stopped."""
        begun = time.monotonic()
        try:
            self._search_lapsed()
            self._next_count = time.monotonic()
            while self._goes_on():
                self._ended += self._pool.outcomes(self._patience())
                try:
                    if not self._turn():
                        break
                    self._lost_since = None
                except StoreUnreachableError as error:
                    self._bear(error)
        except KeyboardInterrupt:
            self._stops = max(2, self._stops)  # waiting for nothing more, not even for the store
        finally:
            self._pool.close()
        if self._stops >= 2:
            self._ended += self._pool.outcomes(0)
            self._to_release += [held.claim for held in self._in_hand.values()]
            self._exchange()
        self._upkeep.close()
        self.worked.seconds = time.monotonic() - begun
        return self.worked

    def _goes_on(self) -> bool:
        if self._stops == 0:
            return True
        return self._stops == 1 and bool(self._pool.unfinished or self._ended or self._to_release)

    def _turn(self) -> bool:
        """Whatever is due now; ``False`` when nothing is left to do."""
        if self._pool.unusable is not None:
            self._stops = max(1, self._stops)
            self._to_release += self._pool.take_back_waiting()
        if self._stops != self._stops_told:
            self._stops_told = self._stops
            self._to_release += self._pool.take_back_waiting()
            self._watcher.stops(self._pool.unfinished)
        is_due = self._is_due()
        if is_due:
            self._exchange()
        self._do_chores(are_threads_busy=not is_due and self._pool.waiting > 0)
        return not self._is_idle() or self._has_reason_to_wait()

    def _do_chores(self, *, are_threads_busy: bool) -> None:
        """What takes a listing or a batch record, when its time has come; a little later, if only
        then the threads have something to do meanwhile."""
        now = time.monotonic() - (0.0 if are_threads_busy else AHEAD_SECONDS / 2)
        if now >= self._next_word:
            self._next_word = math.inf
            self._upkeep.write_begun()
        if now >= self._next_count:
            self._next_count = now + COUNT_SECONDS * (1 + 5 * self._store.write_interval)
            self._watcher.still_to_do(self._count_queued() + self._pool.unfinished)
        if now >= self._next_search:
            self._search_lapsed()

    def _search_lapsed(self) -> None:
        # Ten times as long where a listing is requests, of which there are so many in five minutes.
        times = 10 if self._store.write_interval else 1
        self._next_search = time.monotonic() + times * LAPSED_SECONDS
        if self._upkeep.take_up_lapsed():
            self._queue_is_empty = False
        again_in = self._upkeep.search_again_in()
        if again_in is not None:
            self._next_search = time.monotonic() + again_in

    def _bear(self, error: StoreUnreachableError) -> None:
        """An outage of the store: what pages have cost must not be lost for it. Outcomes are kept,
        pages in hand go on, and all is written when the store is back."""
        self._last_exchange = now = time.monotonic()
        self._next_look = now + LOOK_SECONDS
        self._lost_since = self._lost_since or now
        if now - self._lost_since > OUTAGE_SECONDS or self._stops > 1:
            raise error
        self._watcher.waits(f"the store ({error.message})")

    def _patience(self) -> float:
        """Seconds to wait for an outcome: short where there is something to do meanwhile."""
        if self._ended:
            # Where writes have to wait, there is no hurry to see whether their time has come.
            return 0.05 if self._store.write_interval else 0.01
        is_waiting = self._pool.unfinished or self._queue_is_empty
        return min(IDLE_SECONDS, self._options.lease_seconds / 8) if is_waiting else 0.0

    def _is_due(self) -> bool:
        since = time.monotonic() - self._last_exchange
        if self._to_release and not self._pool.unfinished:
            return since >= self._store.write_interval
        if since < self._store.write_interval:
            return False
        wants_pages = not self._stops and self._pool.unfinished < self._pace.wanted()
        if self._pool.waiting == 0 and self._ended:
            return True
        if wants_pages and not self._queue_is_empty:
            return self._pool.waiting < self._pace.wanted() / 2 or since > AHEAD_SECONDS / 2
        # Leases are renewed when a third of them is used up, however short they are.
        return since > min(PROGRESS_SECONDS / 2, self._options.lease_seconds / 6)

    def _exchange(self) -> None:
        """One transaction: outcomes, leases and progress, claims to give back, new claims.

        What is remembered of it is brought up to date when it has been written.
        """
        now, clock = utc_now(), time.monotonic()
        self._ended += self._contested.due(clock)
        ended = list(self._ended)
        self._take_back_cancelled()
        back = list(self._to_release)
        claims: list[Claim] = []
        room = 0 if self._stops else self._pace.wanted() - self._pool.unfinished
        try:
            with self._store.transaction() as tx:
                counted, refused = finish_pages(tx, self._project_id, ended, now)
                over = {outcome.claim.page_id for outcome in ended} | {c.page_id for c in back}
                due = self._due(clock, over)
                lost = self._renew(tx, due)
                released = release_claims(tx, self._project_id, back, utc_now())
                held = [h for page_id, h in self._in_hand.items() if page_id not in over]
                if room > 0:
                    claims = claim_pages(
                        tx,
                        self._project_id,
                        room,
                        self._options.lease_seconds,
                        utc_now(),
                        self._options.batch_id,
                        has_suspect=any(is_suspect(h.claim.status) for h in held),
                    )
            self._ended = self._ended[len(ended) :]
            self._to_release = self._to_release[len(back) :]
            for claim in (*(outcome.claim for outcome in ended), *back):
                self._forget(claim)
            self._was_renewed(due, clock)
            for page_id in lost:
                self._in_hand.pop(page_id, None)
            self.worked.released += len(released)
            self._last_exchange = clock
            self._pace.ended(len(ended))
            self._take(claims, clock)
        except (StoreUnreachableError, KeyboardInterrupt):
            # They may have been written all the same, and not be in hand.
            self._to_release += claims
            raise
        self._queue_is_empty = len(claims) < room
        self._tell(counted, self._contested.without(refused, clock))

    def _take(self, claims: list[Claim], clock: float) -> None:
        if claims:
            self._lookout.start_over()
        for claim in claims:
            self._in_hand[claim.page_id] = _Held(claim, renewed=clock)
        self._pace.claimed(claims)
        self._pool.submit(claims)
        if self._upkeep.begin(claims):
            self._next_word = min(self._next_word, clock)
            # What it took to get here says nothing of the pages.
            self._pace.start_over()

    def _forget(self, claim: Claim) -> None:
        held = self._in_hand.get(claim.page_id)
        if held is not None and held.claim.status.claim == claim.status.claim:
            del self._in_hand[claim.page_id]

    def _due(self, clock: float, over: Set[str]) -> dict[str, tuple[str | None, float]]:
        """Step and progress of the pages whose lease is a third used up, or where they have moved;
        not of those that are ``over``."""
        if not self._progress_is_due(clock):
            return {}
        at = {a.claim.page_id: (a.step, a.percent) for a in self._pool.running}
        due = {}
        for page_id, held in self._in_hand.items():
            # One that has ended, and whose outcome comes with the next exchange, stays there.
            seen = at.get(page_id, held.shown)
            is_old = clock - held.renewed > self._options.lease_seconds / 3
            if page_id not in over and (seen != held.shown or is_old):
                due[page_id] = seen
        return due

    def _progress_is_due(self, clock: float) -> bool:
        """Whether the pages in hand are to be looked through, which may be thousands: often enough
        to renew a lease in time, however short it is."""
        interval = min(PROGRESS_SECONDS, self._options.lease_seconds / 6)
        return clock - self._last_progress >= interval

    def _renew(self, tx: KeyValues, due: Mapping[str, tuple[str | None, float]]) -> list[str]:
        """Renew leases and show how far pages are; returns the pages we hold no longer."""
        held = {page_id: (self._in_hand[page_id].claim, *seen) for page_id, seen in due.items()}
        return renew_claims(tx, self._project_id, held, self._options.lease_seconds, utc_now())

    def _was_renewed(self, due: Mapping[str, tuple[str | None, float]], clock: float) -> None:
        for page_id, seen in due.items():
            if page_id in self._in_hand:
                self._in_hand[page_id].shown, self._in_hand[page_id].renewed = seen, clock
        if self._progress_is_due(clock):
            self._last_progress = clock

    def _take_back_cancelled(self) -> None:
        """Keep from beginning what was claimed ahead of a batch that has been cancelled since."""
        if not self._pool.waiting:
            return
        batch_ids = {held.claim.status.batch_id for held in self._in_hand.values()}
        cancelled = cancelled_batches(self._store, self._project_id, batch_ids)
        if cancelled:
            taken = self._pool.take_back_waiting()
            self._pool.submit(claim for claim in taken if claim.status.batch_id not in cancelled)
            self._to_release += [c for c in taken if c.status.batch_id in cancelled]

    def _tell(self, counted: list[Outcome], refused: list[Outcome]) -> None:
        failed = [outcome for outcome in counted if outcome.error is not None]
        tried_again = sum(outcome.try_again for outcome in failed)
        self.worked.refused += len(refused)
        self.worked.tried_again += tried_again
        self.worked.failed += len(failed) - tried_again
        self.worked.done += len(counted) - len(failed)
        self._watcher.pages_ended(counted)

    def _count_queued(self) -> int:
        hidden = self._store.hidden_items() or 0
        return hidden + count_items(self._store, self._project_id, self._options.batch_id)

    def _is_idle(self) -> bool:
        at_work = self._pool.unfinished or self._ended or self._to_release or self._contested
        return self._queue_is_empty and not at_work

    def _has_reason_to_wait(self) -> bool:
        """Nothing is queued. Is more to be expected? The queue is looked at again meanwhile."""
        if time.monotonic() < self._next_look:
            return True
        self._upkeep.save()
        unfinished = self._upkeep.unfinished_pages()
        if self._upkeep.take_up_lapsed(unfinished) or self._upkeep.queue_lost(unfinished):
            self._queue_is_empty = False
            return True
        reason: str | None = "new pages"
        if not self._options.forever:
            with self._store.snapshot() as reading:
                reason = self._lookout.what_is_expected(reading, unfinished)
        if reason is None:
            return False
        self._watcher.waits(reason)
        self._next_look = time.monotonic() + LOOK_SECONDS + 3 * self._store.write_interval
        return True
