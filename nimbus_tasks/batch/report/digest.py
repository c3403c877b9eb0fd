"""What a report's pages add up to, beyond a batch's counts: for its charts and its tables."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter

from nimbus_tasks.batch.report.packed import PackedRows
from nimbus_tasks.batch.report.rows import Row
from nimbus_tasks.core.clock import parse_iso
from nimbus_tasks.core.failures import FailureGroups
from nimbus_tasks.core.pages import PageInfo

#: Of failed pages, of all pages and of slow ones so many are in the file as plain tables.
FAILED_KEPT, FIRST_KEPT, SLOWEST_KEPT = 100, 50, 10


class Digest:
    """Filled row by row; keeps figures, a few rows, and all of them packed.

    ``done_at`` and ``failed_at`` are when pages ended, in seconds since 1970; ``durations_ms`` and
    ``confidences`` are those of done pages.
    """

    def __init__(self) -> None:
        self.groups = FailureGroups()
        self.packed = PackedRows()
        self.done_at = array("d")
        self.failed_at = array("d")
        self.durations_ms = array("d")
        self.confidences = array("d")
        self.attempts: Counter[int] = Counter()
        self.failed: list[Row] = []
        self.first: list[Row] = []
        self._slowest: list[tuple[int, str, Row]] = []

    def add(self, row: Row) -> None:
        """Take the next page."""
        self.packed.add(row)
        if len(self.first) < FIRST_KEPT:
            self.first.append(row)
        self.attempts[row["attempts"]] += 1
        state, duration = row["status"], row["duration_ms"]
        if state == "failed":
            self.groups.add(PageInfo(row["page_id"], row))
            if len(self.failed) < FAILED_KEPT:
                self.failed.append(row)
            self._ended(row, self.failed_at)
        elif state == "done":
            self._ended(row, self.done_at)
            if duration is not None:
                self.durations_ms.append(duration)
            if row["confidence"] is not None:
                self.confidences.append(row["confidence"])
        if duration is not None:
            self._compare(duration, row)

    def _ended(self, row: Row, moments: array[float]) -> None:
        moment = parse_iso(row["completed"])
        if moment is not None:
            moments.append(moment.timestamp())

    def _compare(self, duration: int, row: Row) -> None:
        item = (duration, row["page_id"], row)
        if len(self._slowest) < SLOWEST_KEPT:
            heapq.heappush(self._slowest, item)
        elif item[:2] > self._slowest[0][:2]:
            heapq.heapreplace(self._slowest, item)

    def slowest(self) -> list[Row]:
        """The pages that took longest, the longest first."""
        return [row for _, _, row in sorted(self._slowest, key=lambda item: (-item[0], item[1]))]
