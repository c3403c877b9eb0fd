"""Batches that have ended, written straight to the store: for reports without a worker."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from nimbus_tasks.batch.report.as_html import HtmlReport
from nimbus_tasks.batch.report.rows import FIELDS
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.keys import page_id_for, status_key
from nimbus_tasks.core.lifecycle import Tally
from nimbus_tasks.core.pace import UNKNOWN
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import Store

BATCH_ID = "batch_20261124_085002"
_START = datetime(2026, 11, 24, 8, 50, 2, tzinfo=timezone.utc)
_STREETS = ("high", "station", "church", "mill", "park", "queen", "victoria", "green", "manor")
_TRADES = ("watch-repair", "clock-service", "battery-change", "strap-fitting", "valuation")
_TOWNS = [
    first + last
    for first in ("ash", "brad", "clif", "dun", "eas", "fal", "glen", "hal", "ips", "ken", "lang")
    for last in ("ford", "ton", "ham", "wick", "bury", "ley", "mouth", "stead", "field", "worth")
]


def outcome(number: int, chance: random.Random) -> PageStatus:
    """A page that is done, or has failed in one of the ways in which pages do."""
    town, street = chance.choice(_TOWNS), chance.choice(_STREETS)
    path = f"dist/{town}/{street}-street/{chance.choice(_TRADES)}-{number}.html"
    ended = to_iso(_START + timedelta(milliseconds=40 * number + chance.randrange(3_000)))
    common: dict[str, Any] = {
        "batch_id": BATCH_ID,
        "updated": ended,
        "completed": ended,
        "path": path,
        "duration_ms": int(chance.lognormvariate(6.5, 0.6)),
        "started": to_iso(_START),
    }
    if chance.random() < 0.95:
        return PageStatus(
            state="done",
            attempts=1,
            changes=chance.randrange(12),
            confidence=round(min(1.0, max(0.0, chance.gauss(0.78, 0.1))), 4),
            **common,
        )
    code, error = chance.choice(
        [
            ("timeout", f"took longer than {chance.randrange(20, 90)} seconds"),
            ("RuntimeError", f"429 Too Many Requests: retry after {chance.randrange(60)} s"),
            ("ValueError", f"no h1 in {path}: found {chance.randrange(9)} headings"),
            ("KeyError", "'metaDescription'"),
        ]
    )
    return PageStatus(state="failed", attempts=3, code=code, error=error, **common)


def outcomes(count: int) -> Iterator[PageStatus]:
    """So many varied pages, the same ones every time."""
    chance = random.Random(count)
    return (outcome(number, chance) for number in range(count))


def write_html(path: Path, project: Project, statuses: Iterable[PageStatus]) -> None:
    """The HTML report of such a batch without a store, in a moment for 100,000 pages."""
    tally = Tally(0)
    rows: list[dict[str, Any]] = []
    for status in statuses:
        row: dict[str, Any] = {name: getattr(status, name, None) for name in FIELDS[:-1]}
        row |= {"page_id": page_id_for("proj", status.path or ""), "status": status.state}
        row["log_entries"] = 1
        tally.add({**row, "started": status.started, "updated": status.updated})
        rows.append(row)
    head = BatchHead(BATCH_ID, project.project_id, to_iso(_START), len(rows), "queued", "run")
    view = BatchView(head, tally, tally.status("run"), UNKNOWN)
    with path.open("w", encoding="utf-8") as file:
        report = HtmlReport(file, project, view, to_iso(_START), {})
        report.add(sorted(rows, key=lambda row: row["path"]))
        report.finish()


def put_batch(project: Project, store: Store, statuses: Iterable[PageStatus]) -> str:
    """Store a batch of those pages; returns its id."""
    entries, pages = [], {}
    for status in statuses:
        page_id = page_id_for(project.project_id, status.path or "")
        entries.append(status.entry(status_key(project.project_id, page_id)))
        pages[page_id] = {"status": status.state}
    head = BatchHead(BATCH_ID, project.project_id, to_iso(_START), len(pages), "queued", "run")
    with store.transaction() as tx:
        tx.put_many(entries)
        tx.put_many([Batch(head, pages).entry()])
        batches.save_snapshot(tx, project.project_id, BATCH_ID)
    return BATCH_ID


def put_ended_batch(project: Project, store: Store, count: int) -> str:
    """Store a batch of so many varied pages; returns its id."""
    return put_batch(project, store, outcomes(count))
