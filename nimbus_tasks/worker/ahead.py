"""How many pages a worker has in hand: one a thread, and some ahead where pages are short.

Threads then need not wait for the store. Longer pages lose nothing by the wait for a claim, and a
cancel should find them queued.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Claimed ahead, of pages that take less than SHORT_PAGE_SECONDS: what is done in AHEAD_SECONDS.
AHEAD_SECONDS, SHORT_PAGE_SECONDS = 0.5, 0.1
MAX_AHEAD_PAGES, MAX_AHEAD_CHARACTERS = 2000, 8 * 1024 * 1024
MEASURE_SECONDS, FIRST_MEASURE_PAGES = 0.25, 4
#: What is left of a rate after a stretch in which less was done: threads may have had to wait.
RATE_KEPT = 0.75


class Ahead:
    """Measures how fast pages end and how large they are, for ``concurrency`` threads.

    ``first_ahead`` is how many pages a second and a thread are expected before any has ended, of a
    store that cannot be written to at any time. ``clock`` is a moment of ``time.monotonic``, here
    and below.
    """

    def __init__(self, concurrency: int, first_ahead: float, clock: float) -> None:
        self._concurrency = concurrency
        self._first_ahead = first_ahead
        self._rate = 0.0
        self._page_characters = 1.0
        self._ended, self._since = 0, clock

    def wanted(self, write_interval: float) -> int:
        """How many pages to have in hand, with a store that can be written to each
        ``write_interval`` seconds."""
        if not write_interval and self._rate < self._concurrency / SHORT_PAGE_SECONDS:
            return self._concurrency
        # More than is done until the store can be asked again: the rate is of a time when threads
        # may have had to wait, and at the beginning nothing is known of it.
        expected = self._first_ahead * self._concurrency if write_interval else 0.0
        ahead = (self._rate or expected) * max(AHEAD_SECONDS, 3 * write_interval)
        most = MAX_AHEAD_CHARACTERS / self._page_characters
        return self._concurrency + int(min(ahead, MAX_AHEAD_PAGES, most))

    def claimed(self, characters: Iterable[int]) -> None:
        """Pages of that many characters each are in hand now."""
        for count in characters:
            self._page_characters += (count - self._page_characters) / 20
        self._page_characters = max(1.0, self._page_characters)

    def ended(self, count: int, clock: float) -> None:
        """So many pages more have ended by ``clock``. The rate is measured over stretches that are
        long enough to tell."""
        self._ended += count
        elapsed = clock - self._since
        # At the beginning few pages say enough: until then a page a thread is claimed at a time.
        is_enough = self._rate == 0 and self._ended >= FIRST_MEASURE_PAGES * self._concurrency
        if elapsed >= MEASURE_SECONDS or is_enough:
            self._rate = max(self._ended / elapsed, RATE_KEPT * self._rate)
            self._ended, self._since = 0, clock

    def measure_anew(self, clock: float) -> None:
        """A new stretch begins; what has been counted of the last one is left out."""
        self._ended, self._since = 0, clock
