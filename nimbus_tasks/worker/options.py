"""What a worker is given, whom it tells, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nimbus_tasks.core.claims import Outcome

DEFAULT_CONCURRENCY = 4
DEFAULT_MAX_ATTEMPTS = 1
DEFAULT_LEASE_SECONDS = 60.0
#: With a store that takes one write a second: how many pages a second each thread is expected to
#: do, as long as no page has ended.
FIRST_AHEAD = 4.0
#: How long a message is held whose page has no time limit; after that the page's lease guards it.
HOLD_SECONDS = 600.0
#: The longest that a Cloudflare Queue allows.
LONGEST_HOLD_SECONDS = 12 * 3600.0


class Watcher(Protocol):
    """Who is told what the worker does."""

    def pages_ended(self, outcomes: Sequence[Outcome]) -> None:
        """Attempts have ended and their outcomes are stored."""

    def still_to_do(self, count: int) -> None:
        """So many pages are queued or in hand."""

    def waits(self, reason: str) -> None:
        """Nothing is to be done now; the worker waits, for this reason."""

    def stops(self, in_flight: int) -> None:
        """The worker has been asked to stop and lets so many pages in flight finish."""


@dataclass(frozen=True)
class Options:
    """How a worker works. ``timeout`` and ``lease_seconds`` are seconds; ``first_ahead`` is how
    many pages a second and a thread are expected before one has ended."""

    concurrency: int = DEFAULT_CONCURRENCY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout: float | None = None
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    batch_id: str | None = None
    forever: bool = False
    first_ahead: float = FIRST_AHEAD

    @property
    def hold_seconds(self) -> float:
        """For how long the queue keeps a message from others that this worker has taken: a lease,
        and twice what a page may take, since a page may have to wait for the one before it."""
        longest = HOLD_SECONDS if self.timeout is None else 2 * self.timeout
        return min(longest + self.lease_seconds, LONGEST_HOLD_SECONDS)

    def shared(self, lag_seconds: float) -> Options:
        """The same for one of several workers: its leases are longer by ``lag_seconds``, by which
        others see them late; and before it knows how fast it is it claims nothing ahead, which
        others could do meanwhile."""
        return replace(self, lease_seconds=self.lease_seconds + lag_seconds, first_ahead=0.0)


@dataclass
class Worked:
    """What a worker has done: pages that are ``done`` or have ``failed``, failed attempts that are
    ``tried_again``, outcomes ``refused`` since their claim had lapsed, pages ``released`` to the
    queue, lapsed ones ``taken_up``; how long it took, and the status of each batch by id."""

    done: int = 0
    failed: int = 0
    tried_again: int = 0
    refused: int = 0
    released: int = 0
    taken_up: int = 0
    seconds: float = 0.0
    batches: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "done": self.done,
            "failed": self.failed,
            "tried_again": self.tried_again,
            "refused": self.refused,
            "released": self.released,
            "taken_up": self.taken_up,
            "seconds": round(self.seconds, 3),
            "batches": [{"batch_id": b, "status": s} for b, s in self.batches.items()],
        }
