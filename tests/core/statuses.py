"""Status records for tests: one with what a test is about, or any that this project writes."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.records import PageStatus, read_status
from nimbus_tasks.core.wire import dump_json
from nimbus_tasks.kv.store import Entry

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)

BATCH = "batch_20240902_134500"

KEY = "status:proj:page_0123456789ab"

NOW = "2026-11-24T12:00:00.000000Z"

#: As JavaScript's toISOString() writes times.
JS = "2024-09-02T13:45:00.250Z"

TIMES = st.datetimes(
    min_value=datetime(2020, 1, 1),
    max_value=datetime(2099, 1, 1),
    timezones=st.just(timezone.utc),
).map(to_iso)

#: Text that is short, long, escaped, or outside the basic plane.
TEXTS = st.builds(
    lambda unit, times: unit * times,
    st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", "\x00", "é", "💥", "\u2028", "a"]),
    st.sampled_from([0, 1, 2, 10, 100, 2000]),
)

#: What a processor's code is in practice.
CODES = st.from_regex(r"[a-z_]{1,40}", fullmatch=True)

COUNTS = st.integers(0, 2**53 - 1)

SHARES = st.floats(0, 1).map(lambda share: round(share, 4))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or nothing."""
    return st.none() | strategy


UNKNOWN_FIELDS = st.dictionaries(
    st.sampled_from(["owner", "tags", "x-note", "ünïcode", "", "result2", "step"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | SHARES | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
        ),
        max_leaves=5,
    ),
    max_size=3,
)

COMMON: dict[str, st.SearchStrategy[Any]] = {
    "batch_id": st.just(BATCH),
    "updated": TIMES,
    "attempts": COUNTS,
    "path": maybe(TEXTS),
    "uploaded": maybe(TIMES),
    "lapses": st.integers(0, 3),
    "superseded_by": maybe(st.just("batch_20240903_090000_2")),
    "extra": UNKNOWN_FIELDS,
}

SPENT = {"tokens_in": maybe(COUNTS), "tokens_out": maybe(COUNTS), "cost": maybe(SHARES)}

OF_STATE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "uploaded": {},
    "queued": {"priority": st.integers(1, 10), "queued_at": TIMES},
    "processing": {
        "claim": maybe(st.just("0123456789abcdef")),
        "lease": maybe(TIMES),
        "started": TIMES,
        "step": maybe(TEXTS),
        "progress": st.floats(0, 100) | st.integers(0, 100),
    },
    "done": {
        "started": maybe(TIMES),
        "completed": TIMES,
        "duration_ms": maybe(COUNTS),
        "changes": COUNTS,
        "confidence": maybe(SHARES),
        **SPENT,
    },
    "failed": {
        "started": maybe(TIMES),
        "completed": TIMES,
        "duration_ms": maybe(COUNTS),
        "error": TEXTS,
        "code": maybe(CODES),
        **SPENT,
    },
    "cancelled": {},
}


def statuses(state: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[PageStatus]:
    """Statuses of that state, of any content that this project writes."""
    return st.builds(PageStatus, state=st.just(state), **{**COMMON, **OF_STATE[state], **fields})


ANY_STATUS = st.one_of(*(statuses(state) for state in PAGE_STATES))


def written(status: PageStatus) -> PageStatus:
    """The status as another process reads it."""
    return read_status(Entry(KEY, dump_json(status.to_value())))


def a_status(state: str = "queued", **fields: Any) -> PageStatus:
    """A status, with only what a test is about spelled out."""
    return PageStatus(state, BATCH, NOW, **fields)


def metadata_size(metadata: object) -> int:
    """The bytes that a store counts."""
    return len(json.dumps(metadata, separators=(",", ":")).encode())
