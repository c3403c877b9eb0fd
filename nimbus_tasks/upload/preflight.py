"""What an upload to Cloudflare will cost, said before anything is sent.

Pure. Source of the figures: Cloudflare's limits and prices of Workers KV, November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from nimbus_tasks.kv.cloudflare.chunks import MAX_BODY_BYTES
from nimbus_tasks.upload.sending import CHUNK_BYTES, CHUNK_PAGES

#: The free plan's day.
FREE_WRITES_A_DAY = 1000
#: The paid plan: 5 USD a million writes, beyond those that it includes each month.
PAID_USD_A_WRITE = 5 / 1_000_000
#: Claim, outcome, log, and content with its optimization.
_WRITES_A_PAGE_WORKED = 4
#: JSON within JSON: what quotation marks and metadata add, at the most that real pages need.
_BYTES_AS_SENT = 1.25


@dataclass(frozen=True)
class Cost:
    """``writes`` and ``requests`` of the upload; ``work_writes``, at the most, of the work on its
    pages afterwards."""

    writes: int
    requests: int
    work_writes: int

    @property
    def free_days(self) -> float:
        """Days of the free plan's writes that upload and work take."""
        return (self.writes + self.work_writes) / FREE_WRITES_A_DAY

    @property
    def paid_usd(self) -> float:
        """What the writes of upload and work cost on the paid plan, in US dollars."""
        return (self.writes + self.work_writes) * PAID_USD_A_WRITE

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` adds to the document of a dry run."""
        return {
            "writes": self.writes,
            "requests": self.requests,
            "work_writes": self.work_writes,
            "free_days": round(self.free_days, 3),
            "paid_usd": round(self.paid_usd, 4),
        }


def upload_cost(pages: int, size: int, *, taken_over: int = 0, queue: str = "keys") -> Cost:
    """The cost of sending that many ``pages``, ``size`` bytes in all. ``taken_over`` of them are in
    an earlier batch; ``queue`` is the layout of the queue."""
    if not pages:
        return Cost(writes=0, requests=4, work_writes=0)
    chunks = max(ceil(pages / CHUNK_PAGES), ceil(size / CHUNK_BYTES))
    bodies = max(chunks, ceil(size * _BYTES_AS_SENT / MAX_BODY_BYTES))
    # An item a page; or one document that is written anew with each chunk; messages are none.
    queue_writes = {"document": chunks, "cloudflare-queues": 0}.get(queue, pages)
    return Cost(
        writes=2 * pages + queue_writes + taken_over + 2,
        requests=6
        + bodies
        + 3 * chunks
        + ceil(taken_over / 100)
        + ceil(pages / 1000)
        + (ceil(pages / 100) if queue == "cloudflare-queues" else 0),
        work_writes=_WRITES_A_PAGE_WORKED * pages,
    )
