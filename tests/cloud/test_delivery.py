"""Ticks and messages of the Worker: each page is handed out once, in order, and none is lost."""

from __future__ import annotations

import json
import threading

import pytest

from nimbus_tasks.core.keys import page_id_for
from tests.cloud.conftest import Cloud, paths


def test_a_message_that_comes_twice_is_worked_on_once(cloud: Cloud) -> None:
    cloud.upload(paths(3))
    messages = cloud.messages()
    assert len(messages) == 3
    cloud.send(*messages)
    cloud.until(lambda counts: counts == {"done": 3}, ticks=False)
    before = cloud.statuses()
    cloud.send(*messages)
    # Of another tick, for the same items.
    cloud.send(*({**message, "claim": "of-another"} for message in messages))
    cloud.upload(["dist/last.html"])  # when this one has ended, those have
    cloud.until_ended()
    after = cloud.statuses()
    assert all(after[path] == before[path] for path in paths(3))
    assert sum(cloud.service.asked[path] for path in paths(3)) == 3


def test_a_message_that_comes_twice_at_once_leaves_one_outcome(cloud: Cloud) -> None:
    cloud.service.gate.clear()
    cloud.upload(paths(2))
    messages = cloud.messages()
    cloud.send(*messages, *messages)
    cloud.in_hand(2)
    cloud.service.gate.set()
    cloud.until_ended()
    assert cloud.counts() == {"done": 2}
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}
    assert cloud.verified() == []


def test_two_ticks_at_once_do_no_harm(cloud: Cloud) -> None:
    cloud.upload(paths(30))
    together = threading.Barrier(2)

    def tick() -> None:
        together.wait(60)
        cloud.tick()

    threads = [threading.Thread(target=tick) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cloud.until_ended()
    assert cloud.counts() == {"done": 30}
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}
    assert {p["log_entries"] for p in cloud.document("nimbus.batch.report")["pages"]} == {2}
    assert cloud.verified() == []


def test_claims_that_lapse_are_taken_up_again_and_fail_in_the_end(cloud: Cloud) -> None:
    [lost] = paths(1)
    cloud.set(lose=[lost], LEASE_SECONDS=1)
    cloud.upload([lost])
    cloud.until_ended()
    status = cloud.statuses()[lost]
    assert (status["status"], status["error"]["code"]) == ("failed", "worker_lost")
    assert (status["attempts"], status["lapses"]) == (3, 3)
    assert cloud.verified() == []


def test_messages_that_come_to_nothing_are_sent_again(cloud: Cloud) -> None:
    """The Queue has lost them; or it was stopped for a while."""
    cloud.set(hold=True, LEASE_SECONDS=1)
    cloud.upload(paths(2))
    assert [cloud.tick()["sent"] for _ in range(2)] == [2, 0]
    cloud.set(LEASE_SECONDS=1)
    cloud.until(lambda counts: counts == {"done": 2})
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}


def test_a_page_that_ends_every_invocation_fails(cloud: Cloud) -> None:
    """Its messages are dead letters; its neighbours come again without it."""
    killer = "dist/killer.html"
    cloud.set(kill=[killer])
    cloud.upload([killer])
    cloud.until_ended()
    status = cloud.statuses()[killer]
    assert (status["status"], status["error"]["code"]) == ("failed", "worker_lost")
    assert status["attempts"] == 1


def test_where_reads_lag_nothing_is_claimed_twice_nor_the_tasks_overwritten(cloud: Cloud) -> None:
    cloud.set(LAG_SECONDS=60, CONCURRENCY=100)
    cloud.upload(paths(12))
    with cloud.open() as store:
        items = [store.get(i.key) for i in store.scan(f"queue:{cloud.project.project_id}:")]
    first = cloud.tick()
    # Pages were queued just now: what was written into the batch record may not be seen yet.
    assert (first["sent"], first["snapshots"]) == (12, 0)
    cloud.until(lambda counts: counts == {"done": 12}, ticks=False)
    with cloud.open() as store:  # an old listing, which shows them still
        store.put_many(items)
    assert cloud.tick()["sent"] == 0
    assert sum(cloud.service.asked.values()) == 12
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}


def test_a_queue_that_takes_nothing_loses_nothing(cloud: Cloud) -> None:
    cloud.set(refuse=True)
    cloud.upload(paths(5))
    with pytest.raises(OSError, match="500"):
        cloud.tick()
    assert cloud.counts() == {"queued": 5}
    assert {status["attempts"] for status in cloud.statuses().values()} == {0}
    cloud.set()
    cloud.until_ended()
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}


def test_a_queued_page_that_is_in_no_queue_is_put_back(cloud: Cloud) -> None:
    cloud.upload(paths(4))
    with cloud.open() as store:
        items = [info.key for info in store.scan(f"queue:{cloud.project.project_id}:")]
        store.delete_many(items[:2])
    cloud.until_ended()
    assert cloud.counts() == {"done": 4}


def test_a_tick_that_has_few_operations_goes_on_at_the_next(cloud: Cloud) -> None:
    """Five pages an operation are sent."""
    cloud.set(OPERATIONS=20, CONCURRENCY=100)
    cloud.upload(paths(110))
    first = cloud.tick()
    assert first["sent"] == 100
    assert first["operations"] <= 20
    cloud.until_ended()
    assert cloud.counts() == {"done": 110}
    assert {status["attempts"] for status in cloud.statuses().values()} == {1}
    assert cloud.verified() == []


def test_pages_are_claimed_in_the_order_of_the_queue(cloud: Cloud) -> None:
    """Retries before new pages."""
    cloud.upload(["dist/throws.html"])
    cloud.until_ended()
    cloud.service.mended = True
    cloud.upload([*paths(3), "dist/throws.html"])
    failed = page_id_for(cloud.project.project_id, "dist/throws.html")
    with cloud.open() as store:
        [first] = [
            i.key
            for i in store.scan(f"queue:{cloud.project.project_id}:")
            if i.key.endswith(failed)
        ]
        item = json.loads(store.get(first).value)
        status = json.loads(store.get(f"status:{cloud.project.project_id}:{failed}").value)
        store.delete_many([first])
        status["queued"]["priority"] = item["priority"] = 8
        rank = first.replace(":05:", ":02:")
        store.put(rank, json.dumps(item), {"page_id": failed, "batch_id": item["batch_id"]})
        store.put(f"status:{cloud.project.project_id}:{failed}", json.dumps(status), {})
    cloud.set(CONCURRENCY=1)
    cloud.service.gate.clear()
    assert cloud.tick()["sent"] == 3
    cloud.in_hand(3)
    assert cloud.statuses()["dist/throws.html"]["status"] == "processing"
