"""The Worker's records are Python's: both read and write the same, whatever anybody wrote."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.lifecycle import PAGE_STATES, Intent, batch_status
from nimbus_tasks.core.records import PageStatus, Usage
from tests.factories import REPOSITORY
from tests.wrangler.installed import MODULES, need_wrangler

WORKER = REPOSITORY / "nimbus_tasks" / "cloud" / "worker"
NOW, LEASE = "2026-11-24T08:00:00.000000Z", "2026-11-24T08:15:00.000000Z"
JOB = {"batch_id": "batch_1", "attempt": 2, "claim": "c1", "claimed": NOW, "lease": LEASE}
ANSWER = {
    "title": "A\x1b[2J \u202ebad\n title",
    "title_confidence": 0.9,
    "description": "d",
    "description_confidence": 1,
}
#: Answers of a model that are no title and description.
NO_ANSWERS = [
    {"title": "no description", "title_confidence": 1},
    ANSWER | {"title": "x" * 121},
    ANSWER | {"title": " \u202e "},
    ANSWER | {"description": ["a"]},
    ANSWER | {"title": "Buy <b>now</b>"},
    ANSWER | {"title": "See www.example.com"},
    ANSWER | {"description": "{{ secrets }}"},
    ANSWER | {"description": "[here](javascript:x)"},
    ANSWER | {"title_confidence": "very"},
    ANSWER | {"description_confidence": 2},
]
OLDER, NEWER = "2026-11-24T07:59:00.000000Z", "2026-11-24T08:00:01.000000Z"
#: What KV may show to whoever holds that claim, and whether the page is still his.
HELD: dict[str, tuple[dict[str, Any], bool]] = {
    "his claim": ({"status": "processing", "processing": {"claim": "c1"}, "updated": NEWER}, True),
    "as it was before": ({"status": "queued", "attempts": 1, "updated": OLDER}, True),
    "an attempt before": ({"status": "failed", "attempts": 1, "updated": OLDER}, True),
    "a later claim": (
        {"status": "processing", "processing": {"claim": "c2"}, "updated": NEWER},
        False,
    ),
    "an earlier claim": (
        {"status": "processing", "processing": {"claim": "c0"}, "updated": OLDER},
        True,
    ),
    "its own outcome": ({"status": "done", "attempts": 2, "updated": NEWER}, False),
    "its outcome, which the claim was written over": (
        {"status": "done", "attempts": 2, "updated": OLDER},
        True,
    ),
    "uploaded anew": ({"status": "queued", "attempts": 0, "updated": NEWER}, False),
    "cancelled": ({"status": "cancelled", "attempts": 1, "updated": NEWER}, False),
    "of no time": ({"status": "queued", "attempts": 1, "updated": "yesterday"}, True),
    "damaged": ({}, True),
}
_TIMES = (NOW, LEASE, "2026-11-24T07:00:00.123Z", "2020-01-01T00:00:00.000000Z", "x" * 41, 5, None)
_TEXTS = ("", "a", "ü" * 300, "😀" * 90, 'with "quotes"\n', "\x7f\x1b", "x" * 3000, 7, None)
_NUMBERS = (0, 1, 3.5, -2, 2**60, True, "4", None, 11)
_USAGES: tuple[Any, ...] = (
    {"tokens_in": 12, "tokens_out": 3, "cost": 0.5},
    {"tokens_in": 4},
    {"cost": "1"},
    {},
    7,
)
#: A field of a record, and what may be there: right, wrong, or long.
_FIELDS: dict[str, tuple[Any, ...]] = {
    "status": (*PAGE_STATES, "unheard", None),
    "batch_id": ("batch_1", "b" * 128, "not an id", None),
    "updated": _TIMES,
    "attempts": _NUMBERS,
    "path": _TEXTS,
    "uploaded": _TIMES,
    "lapses": (0, 1, 2),
    "superseded_by": ("batch_2", None, 3),
    "spent": (*_USAGES, None),
    "theirs": (1, {"a": []}),
}
_PARTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "queued": {"priority": _NUMBERS, "queued_at": _TIMES, "why": ("so",)},
    "processing": {
        "started": _TIMES,
        "current_step": _TEXTS,
        "progress": _NUMBERS,
        "claim": ("c0",),
        "lease": _TIMES,
        "host": ("h",),
        "message": ("theirs",),
        "usage": _USAGES,
    },
    "result": {
        "completed": _TIMES,
        "timestamp": _TIMES,
        "changes": _NUMBERS,
        "confidence": (0, 0.25, 1, "high"),
        "duration_ms": _NUMBERS,
        "started": _TIMES,
        "usage": (*_USAGES, None),
    },
    "error": {
        "message": _TEXTS,
        "code": _TEXTS,
        "timestamp": _TIMES,
        "completed": _TIMES,
        "duration_ms": _NUMBERS,
        "started": _TIMES,
        "usage": (*_USAGES, None),
    },
}


def some(chance: random.Random, fields: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Most of the fields, each with one of its values."""
    return {
        name: chance.choice(values) for name, values in fields.items() if chance.random() < 0.85
    }


def a_status(chance: random.Random) -> dict[str, Any]:
    parts = {n: some(chance, f) for n, f in _PARTS.items() if chance.random() < 0.4}
    return some(chance, _FIELDS) | parts


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """Cases, and what the Worker says of them."""
    need_wrangler()
    chance = random.Random(7)
    counted = [dict(zip(PAGE_STATES, n, strict=True)) for n in itertools.product((0, 2), repeat=6)]
    cases = {
        "now": NOW,
        "lease": LEASE,
        "statuses": [a_status(chance) for _ in range(600)],
        "answers": [ANSWER, *NO_ANSWERS],
        "held": [[{**status, "theirs": 1}, JOB] for status, _ in HELD.values()],
        "batches": [
            [intent.value, counts, superseded]
            for intent, counts, superseded in itertools.product(Intent, counted, (0, 1, 2))
            if superseded <= counts["cancelled"]
        ],
    }
    node = MODULES / ".bin" / "node"
    ran = subprocess.run(
        [node, Path(__file__).with_name("records_under_test.js"), WORKER],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return cases | {"said": json.loads(ran.stdout)}


def test_the_small_form_is_the_same(said: dict[str, Any]) -> None:
    for value, told in zip(said["statuses"], said["said"]["statuses"], strict=True):
        status = PageStatus.from_value(value)
        assert told["small"] == status.to_metadata(), value
        assert len(json.dumps(told["small"], separators=(",", ":"))) <= 1024
        place = replace(status, state="queued").queue_key("p", "page_1")
        assert told["place"] == place


def test_a_lease_lapses_at_the_same_moment(said: dict[str, Any]) -> None:
    lapsed = [PageStatus.from_value(value).lapsed(NOW) for value in said["statuses"]]
    assert [told["lapsed"] for told in said["said"]["statuses"]] == lapsed
    assert 20 < sum(lapsed) < 580


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("claimed", "processing"),
        ("done", "done"),
        ("failed", "failed"),
        ("queued", "queued"),
        ("spent", "queued"),
        ("cancelled", "cancelled"),
        ("lost", "failed"),
    ],
)
def test_what_the_worker_writes_python_reads_and_would_write(
    said: dict[str, Any], name: str, state: str
) -> None:
    for value, told in zip(said["statuses"], said["said"]["statuses"], strict=True):
        before, written = PageStatus.from_value(value), told[name]
        after = PageStatus.from_value(written)
        assert (after.state, after.extra) == (state, before.extra)
        kept = ("batch_id", "path", "uploaded", "superseded_by")
        assert all(getattr(after, field) == getattr(before, field) for field in kept), value
        taken = Usage(3, 1, 0.25) if name == "spent" else None
        used = ("tokens_in", "tokens_out", "cost")
        for field in used:
            assert getattr(after, field) == getattr(before.with_usage(taken), field), value
        one_more = name in ("claimed", "done", "failed")
        assert after.attempts == before.attempts + one_more
        part = {"claimed": "processing", "done": "result", "failed": "error"}.get(name)
        if part:
            assert written[part] == after.to_value()[part]


def test_who_holds_a_page_though_reads_lag(said: dict[str, Any]) -> None:
    for (what, (_, is_his)), held in zip(HELD.items(), said["said"]["held"], strict=True):
        assert (held is not None) == is_his, what
        if held is not None:
            status = PageStatus.from_value(held)
            assert (status.state, status.claim, held["theirs"]) == ("processing", "c1", 1), what


def test_a_batch_is_in_the_same_status(said: dict[str, Any]) -> None:
    expected = [batch_status(*case).value for case in said["batches"]]
    assert said["said"]["batches"] == expected
    assert len(set(expected)) == 9


def test_of_a_models_answer_only_short_plain_text_is_taken(
    said: dict[str, Any],
) -> None:
    taken, *refused = said["said"]["answers"]
    assert taken == {
        "title": {"text": "A [2J bad title", "confidence": 0.9},
        "description": {"text": "d", "confidence": 1},
    }
    assert refused == ["bad_answer"] * len(NO_ANSWERS)
