"""How many pages a worker has in hand: one a thread, and some ahead where pages are short.

Threads that have done a short page would wait for the next claim longer than the page took. Longer
pages lose nothing by that wait, and a cancel, or another worker, should find them in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from nimbus_tasks.core.claims import Claim

#: Of pages that take less than SHORT_PAGE_SECONDS, what is processed in AHEAD_SECONDS is claimed
#: ahead, so far as MAX_AHEAD_PAGES and the memory for MAX_AHEAD_CHARACTERS of content allow.
AHEAD_SECONDS, SHORT_PAGE_SECONDS = 0.5, 0.1
MAX_AHEAD_PAGES, MAX_AHEAD_CHARACTERS = 2000, 8 * 1024 * 1024
#: The rate is taken anew over so long; the first time over so many pages a thread, if that is less.
MEASURE_SECONDS, FIRST_MEASURE_PAGES = 0.25, 4
#: What is left of a rate after a stretch in which less was done: threads may have had to wait.
RATE_KEPT = 0.75


class Pace:
    """``write_interval`` is in seconds: a store that asks for one is asked for pages so seldom.
    ``first_ahead`` is how many pages a second and a thread are expected of it before one has ended.
    ``clock`` is for tests."""

    def __init__(
        self,
        concurrency: int,
        write_interval: float = 0.0,
        first_ahead: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._concurrency = concurrency
        self._write_interval = write_interval
        self._first_ahead = first_ahead
        self._clock = clock
        self._rate = 0.0
        self._page_characters = 1.0
        self.start_over()

    def start_over(self) -> None:
        """What was done until now says nothing of the pages: it is not counted."""
        self._counted, self._since = 0, self._clock()

    def claimed(self, claims: Iterable[Claim]) -> None:
        """Pages have come, and are about as long as those that will."""
        for claim in claims:
            characters = len(claim.page.value) if claim.page else 0
            self._page_characters += (characters - self._page_characters) / 20
        self._page_characters = max(1.0, self._page_characters)

    def ended(self, count: int) -> None:
        """So many pages have ended since this was last called."""
        self._counted += count
        elapsed = self._clock() - self._since
        # At the beginning few pages say enough: until then a page a thread is claimed at a time.
        is_enough = self._rate == 0 and self._counted >= FIRST_MEASURE_PAGES * self._concurrency
        if elapsed >= MEASURE_SECONDS or (
            is_enough and elapsed > 0
        ):  # some clocks have coarse ticks
            self._rate = max(self._counted / elapsed, RATE_KEPT * self._rate)
            self.start_over()

    def wanted(self) -> int:
        """How many pages to have in hand, those at work among them."""
        if not self._write_interval and self._rate < self._concurrency / SHORT_PAGE_SECONDS:
            return self._concurrency
        # More than is done until the store can be asked again: the rate is of a time when threads
        # may have had to wait, and at the beginning nothing is known of it.
        first = self._first_ahead * self._concurrency if self._write_interval else 0.0
        ahead = (self._rate or first) * max(AHEAD_SECONDS, 3 * self._write_interval)
        most = MAX_AHEAD_CHARACTERS / self._page_characters
        return self._concurrency + int(min(ahead, MAX_AHEAD_PAGES, most))
