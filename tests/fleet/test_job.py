"""The main job by several workers at once, each on a machine of its own."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from tests.factories import failing
from tests.fleet.conftest import TOKEN, Fleet, beginning_together, slowly


@pytest.mark.parametrize("stale", [0.0, 0.12])
def test_three_workers_share_a_batch(fleet: Fleet, stale: float) -> None:
    fleet.server.stale_reads = stale
    fleet.upload(90)
    assert (len(fleet.server.messages), fleet.server.most_published) == (90, 90)
    assert not [key for key in fleet.server.data if key.startswith("queue:")]
    processor = beginning_together(6, slowly(0.02))
    worked = fleet.work("one", "two", "three", concurrency=2, processor=processor)
    assert sum(one.done for one in worked) == 90
    assert sum(one.done > 0 for one in worked) == 3
    assert set(fleet.begun.values()) == {1}
    assert Counter(s["status"] for s in fleet.statuses().values()) == {"done": 90}
    assert {status["attempts"] for status in fleet.statuses().values()} == {1}
    [record] = [value for key, value in fleet.server.data.items() if key.startswith("batch:")]
    assert json.loads(record[0])["intent"] == "run"
    assert fleet.server.messages == fleet.server.dead == []
    assert fleet.server.operations == {"write": 90, "read": 90, "delete": 90}


def test_a_cancel_in_the_middle(fleet: Fleet) -> None:
    batch_id = fleet.upload(60)
    go, begun = threading.Event(), threading.Barrier(5)

    def waits(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        begun.wait(60)  # two workers have begun two pages each
        go.wait(60)
        return {"changes": 1}

    def cancel() -> None:
        begun.wait(60)
        with fleet.open("three") as store:
            cancel_batch(fleet.machine("three"), store, batch_id)
        go.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    fleet.work("one", "two", concurrency=2, processor=waits)
    canceller.join()
    counts = fleet.counts()
    assert counts == {"done": 4, "cancelled": 56}
    assert sum(fleet.begun.values()) == 4
    assert fleet.server.messages == []  # those of cancelled pages are acknowledged


def test_failures_are_retried_with_one_attempt_more(fleet: Fleet) -> None:
    fleet.upload(20)
    broken = ("dist/page-003.html", "dist/page-013.html")
    fails = failing(*broken)
    fleet.work("one", "two", processor=fails)
    assert fleet.counts() == {"done": 18, "failed": 2}
    with fleet.open("three") as store:
        assert len(retry_pages(fleet.machine("three"), store).requeued) == 2
    bodies = [message.body for message in fleet.server.messages]
    assert [(body["attempt"], body["priority"]) for body in bodies] == [(2, 8), (2, 8)]
    assert {"page_id", "batch_id", "project_id", "queued_at"} <= bodies[0].keys()
    fleet.work("one", "two", processor=fails)
    assert fleet.counts() == {"done": 20}
    attempts = {path: status["attempts"] for path, status in fleet.statuses().items()}
    assert {path for path, count in attempts.items() if count == 2} == set(broken)


def test_a_retry_that_a_worker_elsewhere_cannot_see_yet_is_kept(fleet: Fleet) -> None:
    """Its message is there before its status: that still says failed."""
    fleet.upload(3)
    fails = failing("dist/page-001.html")
    fleet.work("one", processor=fails)
    fleet.server.stale_reads = 0.2
    with fleet.server.lock:  # what has been written so far has arrived everywhere
        fleet.server._history.clear()
    with fleet.open("one") as store:
        retry_pages(fleet.machine("one"), store)
    fleet.work("two", processor=fails)
    assert {status["status"] for status in fleet.statuses().values()} == {"done"}
    assert fleet.begun["dist/page-001.html"] == 2
    assert fleet.server.operations == {"write": 4, "read": 4, "delete": 4}


def test_attempts_that_are_left_are_made_by_whoever_is_given_them(fleet: Fleet) -> None:
    fleet.upload(10)
    fails = failing("dist/page-004.html", times=2)
    fleet.work("one", "two", processor=fails, max_attempts=3)
    assert fleet.counts() == {"done": 10}
    assert fleet.begun["dist/page-004.html"] == 3
    assert fleet.statuses()["dist/page-004.html"]["attempts"] == 3


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_is_stopped_gives_back_what_it_has(fleet: Fleet, times: int) -> None:
    """Once: what is begun ends. Twice: that goes back as well, and counts as no attempt."""
    fleet.upload(10)
    begun, go = threading.Event(), threading.Event()

    def waits(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        begun.set()
        go.wait(60)
        return {"changes": 1}

    with fleet.worker("one", waits, concurrency=2) as worker:

        def stop() -> None:
            begun.wait(60)
            for _ in range(times):
                worker.stop()
            if times == 1:
                go.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        worked = worker.run()
        stopper.join()
        go.set()
    assert worked.done + len(fleet.server.messages) == 10
    assert (worked.done > 0) == (times == 1)
    assert all(message.visible_at <= time.monotonic() for message in fleet.server.messages)
    fleet.work("two")
    assert fleet.counts() == {"done": 10}
    assert {status["attempts"] for status in fleet.statuses().values()} == {1}


def test_the_job_by_its_commands(fleet: Fleet) -> None:
    """Real processes, with the times as they are. The token goes to the server, and is printed
    nowhere."""
    batch_id = fleet.upload(12)
    doctor, verified = fleet.run_each("nimbus.doctor", "nimbus.batch.verify --json")
    assert json.loads(verified.stdout)["ok"]
    assert "12 pages queued" in doctor.stdout
    worked = fleet.run("nimbus.worker", "--json", machine="two")
    told = json.loads(worked.stdout)
    assert (told["done"], told["failed"]) == (12, 0)
    waited = fleet.run("nimbus.batch.wait", machine="three")
    assert batch_id in waited.stdout
    assert fleet.server.messages == []
    refused = fleet.run("nimbus.worker", "--batch=latest", code=2)
    assert "--batch" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2
    for ran in (doctor, verified, worked, waited, refused):
        assert TOKEN not in ran.stdout + ran.stderr
    assert {seen["Authorization"] for seen in fleet.server.seen} == {f"Bearer {TOKEN}"}
