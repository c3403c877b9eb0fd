"""Messages that come twice, late or from others: each page has one outcome all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.core.clock import iso_after, now_iso
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.worker.contested import Contested
from tests.fleet.conftest import Fleet, slowly
from tests.kv.kv_server import seeded_faults


def test_a_message_that_comes_twice_and_requests_that_fail_do_no_harm(fleet: Fleet) -> None:
    """At least once: a page may be worked on twice, by two at the same time. Where their writes
    cross, the claim of one may stand over the outcome of the other: it finds that out, and no page
    waits for yet another worker."""
    fleet.upload(30)
    fleet.server.duplicates, fleet.server.stale_reads = 0.3, 0.1
    fleet.server.faults = seeded_faults(5, rate=0.1, kinds=("429:0", "500", "reset_after"))
    options = {"processor": slowly(0.02), "hold": 1.0, "lease_seconds": 5.0}
    fleet.work("one", "two", "three", concurrency=2, **options)
    statuses = fleet.statuses().values()
    assert [status["status"] for status in statuses] == ["done"] * 30
    assert sum(fleet.begun.values()) >= 30
    assert {status["attempts"] for status in statuses} <= {1, 2, 3}


def end_by_another(fleet: Fleet, key: str) -> Any:
    """Write another's outcome over a claim, which is returned as it was."""
    with fleet.server.lock:
        claim = fleet.server.data[key]
        status = PageStatus.from_value(json.loads(claim[0]))
        ended = status.changed(state="done", claim=None, completed=now_iso(), changes=7)
        entry = ended.changed(updated=iso_after(0.01)).entry(key)
        fleet.server.write([(key, (entry.value, dict(entry.metadata or {})))])
    return claim


def test_a_claim_that_stands_over_an_outcome_comes_to_its_own(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two have a page at once. The one reads the outcome of the other, and lets go of it; then that
    outcome is seen to have been written over, by the claim of the one, whom nobody else would
    follow."""
    fleet.upload(1)
    key = next(key for key in fleet.server.data if key.startswith("status:"))
    claims: list[Any] = []

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        claims.append(end_by_another(fleet, key))
        return {"changes": 1}

    refuse = Contested.without

    def refused(self: Contested, outcomes: list[Any], clock: float) -> list[Any]:
        if outcomes:
            fleet.server.write([(key, claims[0])])
        return refuse(self, outcomes, clock)

    monkeypatch.setattr(Contested, "without", refused)
    [worked] = fleet.work("one", processor=process)
    assert (worked.done, worked.refused) == (1, 0)
    [status] = fleet.statuses().values()
    assert (status["status"], status["result"]["changes"]) == ("done", 1)
    assert len(claims) == 1
    assert fleet.server.messages == []


def test_an_outcome_that_another_has_come_before_is_refused_in_the_end(fleet: Fleet) -> None:
    fleet.upload(1)
    key = next(key for key in fleet.server.data if key.startswith("status:"))

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        end_by_another(fleet, key)
        return {"changes": 1}

    [worked] = fleet.work("one", processor=process)
    assert (worked.done, worked.refused) == (0, 1)
    [status] = fleet.statuses().values()
    assert status["result"]["changes"] == 7


@pytest.mark.parametrize("accepts_late", [True, False])
def test_a_page_that_takes_longer_than_a_message_is_held(fleet: Fleet, accepts_late: bool) -> None:
    """Its message comes again, to another; its lease says that somebody is at it."""
    fleet.server.accepts_late = accepts_late
    fleet.upload(4)
    fleet.work("one", "two", concurrency=2, processor=slowly(0.8), hold=0.3)
    assert fleet.counts() == {"done": 4}
    assert set(fleet.begun.values()) == {1}
    assert fleet.server.operations["read"] > 4
    assert fleet.server.messages == []


RUBBISH: list[Any] = [
    "no JSON",
    [],
    {"page_id": "page_0123456789ab"},
    {"project_id": "proj_0123456789ab", "page_id": "../x", "batch_id": "b", "priority": 5},
    {"project_id": "proj_0123456789ab", "page_id": 7, "batch_id": [], "queued_at": {}},
    *(
        {
            "project_id": "proj_0123456789ab",
            "page_id": "page_0123456789ab",
            "batch_id": "batch_20260101_000000",
            "priority": priority,
            "queued_at": queued_at,
        }
        for priority, queued_at in (("high", "yesterday"), (5, "2099-01-01T00:00:00.000000Z"))
    ),
]


def test_messages_of_others_are_left_and_disturb_nobody(fleet: Fleet) -> None:
    """They are given back: the queue's own rule takes them to the dead letter queue."""
    for body in RUBBISH:
        fleet.server.publish(body)
    fleet.server.publish("{", "\x1b[2J", "[" * 5000, kind="text")
    fleet.server.publish("%%%", kind="bytes")
    fleet.server.publish({"project_id": "proj_other", "page_id": "page_1"}, None)
    strangers = len(fleet.server.messages)
    fleet.upload(10)
    fleet.work("one", "two")
    assert fleet.counts() == {"done": 10}
    assert len(fleet.server.messages) == strangers
    assert fleet.server.operations["delete"] == 10


def test_a_message_of_no_page_is_acknowledged(fleet: Fleet) -> None:
    """One of this project, of a page that has gone or has ended: there is nothing to work on."""
    fleet.upload(2)
    body = {**fleet.server.messages[0].body, "queued_at": "2026-01-01T00:00:00.000000Z"}
    fleet.server.publish({**body, "page_id": "page_ffffffffffff"}, body)
    fleet.work("one")
    assert fleet.server.messages == []
    assert set(fleet.begun.values()) == {1}


def test_messages_of_a_cancelled_batch_are_gone_in_few_requests(fleet: Fleet) -> None:
    batch_id = fleet.upload(150)
    with fleet.open("two") as store:
        cancel_batch(fleet.machine("two"), store, batch_id)
    fleet.server.requests.clear()
    [worked] = fleet.work("one", concurrency=1)
    assert (worked.done, fleet.server.messages, fleet.begun) == (0, [], {})
    pulls = [path for _, path in fleet.server.requests if path.endswith("/pull")]
    assert len(pulls) <= 10
