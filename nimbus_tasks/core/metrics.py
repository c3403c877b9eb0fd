"""The figures of a batch: success, time, changes, confidence, throughput. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nimbus_tasks.core.clock import seconds_between
from nimbus_tasks.core.lifecycle import Tally, Timing


@dataclass(frozen=True)
class Metrics:
    """``success_rate`` in percent of all pages; confidence 0 to 1; throughput in pages a minute,
    from the first page begun to the last one ended. ``usage`` sums all attempts of the pages:
    ``pages, tokens_in, tokens_out, cost``. ``None`` where there is nothing to measure."""

    total_pages: int
    success_rate: float
    timing: Timing
    total_changes: int
    average_confidence: float | None
    pages_per_minute: float | None
    elapsed_seconds: float | None
    attempts: int
    errors: dict[str, int]
    usage: dict[str, int | float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """The document of ``nimbus.batch.metrics --json``, but for what identifies the batch."""
        return {
            "total_pages": self.total_pages,
            "success_rate": self.success_rate,
            "average_time_ms": self.timing.average_ms,
            "p50_time_ms": self.timing.p50_ms,
            "p95_time_ms": self.timing.p95_ms,
            "total_changes": self.total_changes,
            "average_confidence": self.average_confidence,
            "pages_per_minute": self.pages_per_minute,
            "elapsed_seconds": self.elapsed_seconds,
            "attempts": self.attempts,
            "errors": self.errors,
            "usage": self.usage,
        }


def batch_metrics(tally: Tally) -> Metrics:
    """The figures of what the pages add up to."""
    last = max(tally.completions, default=None)
    elapsed = seconds_between(tally.first_started, last)
    per_minute = 60 * len(tally.completions) / elapsed if elapsed and elapsed > 0 else None
    return Metrics(
        total_pages=tally.total,
        success_rate=tally.success_rate,
        timing=tally.timing(),
        total_changes=tally.total_changes,
        average_confidence=tally.average_confidence,
        pages_per_minute=per_minute and round(per_minute, 2),
        elapsed_seconds=elapsed and round(elapsed, 3),
        attempts=tally.attempts,
        errors=dict(tally.errors.most_common()),
        usage=tally.usage,
    )
