"""Batch status, counts, summary and metrics as pure functions of intent and page states.

Nothing here reads a store or a clock. A :class:`Tally` is filled with the pages' small status
metadata, a group of pages at a time, and keeps figures only, so that 100,000 pages take no more
memory than their durations.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from typing import Any, NamedTuple

from nimbus_tasks.core.columns import Columns, columns_of, rows_where


class PageState(str, Enum):
    """What a page can be in. Every page of a batch is in exactly one."""

    UPLOADED = "uploaded"  # its batch lists it; it is not queued yet
    QUEUED = "queued"  # waits to be claimed
    PROCESSING = "processing"  # somebody holds a claim on it
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BatchStatus(str, Enum):
    """What a batch can be in: always derived, never counted."""

    UPLOADING = "uploading"
    QUEUED = "queued"
    PROCESSING = "processing"
    RETRYING = "retrying"  # at work again after a retry
    CANCELLING = "cancelling"  # cancelled, with pages still in flight
    COMPLETED = "completed"  # every page is done
    PARTIALLY_COMPLETED = "partially_completed"  # some failed
    FAILED = "failed"  # none is done
    CANCELLED = "cancelled"


class Intent(str, Enum):
    """What was last asked for a batch. It is stored; the status follows from it and the pages."""

    UPLOAD = "upload"
    RUN = "run"
    RETRY = "retry"
    CANCEL = "cancel"


PAGE_STATES = tuple(state.value for state in PageState)
TERMINAL_PAGE_STATES = frozenset({"done", "failed", "cancelled"})
TERMINAL_BATCH_STATUSES = frozenset({"completed", "partially_completed", "failed", "cancelled"})
#: What an error without a code is called, in figures, in groups and by ``retry --error``.
UNKNOWN_CODE = "unknown"


def is_finished(status: str) -> bool:
    """Whether a batch of this status has ended, well or not."""
    return status in TERMINAL_BATCH_STATUSES


def batch_status(intent: str, counts: Mapping[str, int], superseded: int = 0) -> BatchStatus:
    """The status that follows from what was asked and what the pages are in.

    ``superseded`` of the cancelled pages are so because a later batch took them over before they
    had ended here; nobody has cancelled this batch for that, and it ends by what its others did.
    Source of the rule: the design's lifecycle; ``tests/core/test_lifecycle.py`` is its table.
    """
    total = sum(counts.values())
    open_pages = total - sum(counts[state] for state in TERMINAL_PAGE_STATES)
    if intent == Intent.UPLOAD:
        return BatchStatus.UPLOADING
    if intent == Intent.CANCEL:
        return BatchStatus.CANCELLING if open_pages else BatchStatus.CANCELLED
    if open_pages:
        if intent == Intent.RETRY:
            return BatchStatus.RETRYING
        begun = counts["processing"] or open_pages < total
        return BatchStatus.PROCESSING if begun else BatchStatus.QUEUED
    if counts["cancelled"] > superseded or (superseded and superseded == total):
        return BatchStatus.CANCELLED
    if counts["failed"] == 0:
        return BatchStatus.COMPLETED
    return BatchStatus.PARTIALLY_COMPLETED if counts["done"] else BatchStatus.FAILED


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value at or below which ``share`` (0 to 1) of an ordered, non-empty list lies."""
    return ordered[max(1, ceil(len(ordered) * share)) - 1]


class Timing(NamedTuple):
    """How long pages took, in milliseconds; ``None`` where none is done."""

    average_ms: int | None
    p50_ms: int | None
    p95_ms: int | None


def _values(columns: Columns, name: str) -> Sequence[Any]:
    """The values of a column that are not ``None``; none where there is no such column."""
    column = columns.get(name, ())
    return [value for value in column if value is not None] if None in column else column


@dataclass
class Tally:
    """What the pages of one batch add up to.

    ``page_count`` is what the batch record lists; pages without a status record count as
    ``uploaded``, so that the counts add up to it at every moment.
    """

    page_count: int
    seen: int = 0
    states: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    durations_ms: array[float] = field(default_factory=lambda: array("d"))
    completions: list[str] = field(default_factory=list)
    total_changes: int = 0
    confidence_sum: float = 0.0
    confidence_count: int = 0
    metered: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    priced: int = 0
    cost: float = 0.0
    attempts: int = 0
    superseded: int = 0
    first_started: str | None = None
    last_changes: dict[str, str] = field(default_factory=dict)

    def add(self, page: Mapping[str, Any]) -> None:
        """Count one page by its status metadata (see :mod:`nimbus_tasks.core.records`)."""
        self.add_all(columns_of([page]))

    def add_all(self, tables: Iterable[Columns]) -> None:
        """Count many pages, whose status metadata is given by columns."""
        for columns in tables:
            for state in set(columns["status"]):
                self._add(state, rows_where(columns, "status", state))

    def _add(self, state: str, columns: Columns) -> None:
        """Count pages that are all in that state."""
        count = len(columns["status"])
        self.seen += count
        self.states[state] += count
        self.attempts += sum(_values(columns, "attempts"))
        last = self.last_changes.get(state, "")
        self.last_changes[state] = max([last, *_values(columns, "updated")])
        started = [*_values(columns, "started")]
        if started:
            self.first_started = min([self.first_started or started[0], *started])
        if state == "cancelled":
            self.superseded += len(_values(columns, "superseded_by"))
            return
        self.completions += _values(columns, "completed")
        if state == "done":
            self.durations_ms.extend(_values(columns, "duration_ms"))
            self.total_changes += sum(_values(columns, "changes"))
            stated = _values(columns, "confidence")
            self.confidence_sum += sum(stated)
            self.confidence_count += len(stated)
        elif state == "failed":
            codes = columns.get("code", [UNKNOWN_CODE] * count)
            self.errors.update(code or UNKNOWN_CODE for code in codes)
        if state in ("done", "failed"):
            # What their attempts took, each with its price; failed pages have one, too.
            self.metered += len(_values(columns, "tokens_in"))
            self.tokens_in += sum(_values(columns, "tokens_in"))
            self.tokens_out += sum(_values(columns, "tokens_out"))
            costs = _values(columns, "cost") if "tokens_in" in columns else ()
            self.priced += len(costs)
            self.cost += sum(costs)

    @property
    def last_change(self) -> str | None:
        """When a page was last written; ``last_changes`` has the same by state."""
        return max(self.last_changes.values(), default="") or None

    @property
    def usage(self) -> dict[str, int | float | None] | None:
        """Tokens of the pages that count them, and what those with a price cost together; ``None``
        where no page counts."""
        if not self.metered:
            return None
        return {
            "pages": self.metered,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": round(self.cost, 6) if self.priced else None,
        }

    @property
    def total(self) -> int:
        """The pages that there are: as listed, or more if more records claim to belong here."""
        return max(self.page_count, self.seen)

    @property
    def counts(self) -> dict[str, int]:
        """Pages by state, all six of them; they add up to :attr:`total`."""
        counts = {state: self.states[state] for state in PAGE_STATES}
        counts["uploaded"] += self.total - self.seen
        return counts

    def status(self, intent: str) -> str:
        """The status of the batch for which that was asked."""
        return batch_status(intent, self.counts, self.superseded).value

    @property
    def pending(self) -> int:
        """Pages that have not ended."""
        counts = self.counts
        return counts["uploaded"] + counts["queued"] + counts["processing"]

    @property
    def ended(self) -> int:
        """Pages that have ended, in whatever state."""
        return self.total - self.pending

    @property
    def average_confidence(self) -> float | None:
        """Mean confidence, 0 to 1, of the done pages that state one."""
        if not self.confidence_count:
            return None
        return round(self.confidence_sum / self.confidence_count, 4)

    @property
    def success_rate(self) -> float:
        """Done pages in percent of all pages of the batch; 0 only if none is done, 100 only if all
        are."""
        done = self.states["done"]
        if done in (0, self.total):
            return 100.0 if done else 0.0
        return min(99.99, max(0.01, round(100 * done / self.total, 2)))

    def timing(self) -> Timing:
        """Average, median and 95th percentile of the done pages' durations."""
        ordered = sorted(self.durations_ms)
        if not ordered:
            return Timing(None, None, None)
        return Timing(
            round(sum(ordered) / len(ordered)),
            round(percentile(ordered, 0.5)),
            round(percentile(ordered, 0.95)),
        )

    def average_time_ms(self) -> int | None:
        """Mean duration of the done pages in milliseconds."""
        if not self.durations_ms:
            return None
        return round(sum(self.durations_ms) / len(self.durations_ms))

    def summary(self) -> dict[str, int | None]:
        """The seed's summary: completed, failed, pending and average time.

        Cancelled pages are in none of the first three, as they neither ended well nor will run.
        """
        return {
            "completed": self.states["done"],
            "failed": self.states["failed"],
            "pending": self.pending,
            "average_time_ms": self.average_time_ms(),
        }
