"""What a worker is given and what it gives: options, whom it tells, what it has done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from nimbus_tasks.core.claims import Outcome

DEFAULT_CONCURRENCY = 4
DEFAULT_MAX_ATTEMPTS = 1
DEFAULT_LEASE_SECONDS = 60.0


class Watcher(Protocol):
    """Who is told what the worker does."""

    def page_ended(self, outcome: Outcome) -> None:
        """An attempt has ended and its outcome is stored."""

    def still_to_do(self, count: int) -> None:
        """So many pages are queued or in hand."""

    def waits(self, reason: str) -> None:
        """Nothing is to be done now; the worker waits, for this reason."""

    def stops(self, in_flight: int) -> None:
        """The worker has been asked to stop and lets so many pages in flight finish."""


@dataclass(frozen=True)
class Options:
    """How a worker works. ``timeout`` and ``lease_seconds`` are seconds."""

    concurrency: int = DEFAULT_CONCURRENCY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout: float | None = None
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    batch_id: str | None = None
    forever: bool = False


@dataclass
class Worked:
    """What a worker has done. ``refused`` outcomes came after their claim had lapsed."""

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
