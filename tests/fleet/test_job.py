"""The main job by several workers at once, each on a machine of its own; and what may happen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.claims import claim_pages
from nimbus_tasks.core.clock import iso_after, now_iso, utc_now
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.cloudflare.queues import QueueClient
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.processors import Processor
from nimbus_tasks.worker.contested import Contested
from tests.factories import environment_for, failing
from tests.fleet.conftest import LAG, TOKEN, Fleet
from tests.kv.kv_server import seeded_faults


def slowly(seconds: float) -> Processor:
    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        time.sleep(seconds)
        return {"changes": 1}

    return process


class Killed(BaseException):
    """The process was killed here."""


@pytest.mark.parametrize("stale", [0.0, 0.12])
def test_three_workers_share_a_batch(fleet: Fleet, stale: float) -> None:
    fleet.server.stale_reads = stale
    fleet.upload(90)
    assert (len(fleet.server.messages), fleet.server.most_published) == (90, 90)
    assert not [key for key in fleet.server.data if key.startswith("queue:")]
    worked = fleet.work("one", "two", "three", concurrency=2, processor=slowly(0.02))
    assert sum(one.done for one in worked) == 90
    assert sum(one.done > 0 for one in worked) == 3
    assert set(fleet.begun.values()) == {1}
    assert Counter(s["status"] for s in fleet.statuses().values()) == {"done": 90}
    assert {status["attempts"] for status in fleet.statuses().values()} == {1}
    [record] = [value for key, value in fleet.server.data.items() if key.startswith("batch:")]
    assert json.loads(record[0])["intent"] == "run"
    assert fleet.server.messages == fleet.server.dead == []
    assert fleet.server.operations == {"write": 90, "read": 90, "delete": 90}


def test_a_message_that_comes_twice_and_requests_that_fail_do_no_harm(fleet: Fleet) -> None:
    """At least once: a page may be worked on twice, by two at the same time. Where their writes
    cross, the claim of one may stand over the outcome of the other: it finds that out, and no page
    waits for yet another worker."""
    fleet.upload(30)
    fleet.server.duplicates, fleet.server.stale_reads = 0.3, 0.1
    fleet.server.faults = seeded_faults(5, rate=0.1, kinds=("429:0", "500", "reset_after"))
    options = {"processor": slowly(0.02), "hold": 1.0, "lease_seconds": 2.0}
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


RUNS_UNTIL_KILLED = f"""
import sys, time
from pathlib import Path
from nimbus_tasks.core.project import load_project
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import Options
from tests.factories import Quiet
CloudflareStore.lag_seconds = {LAG}
project = load_project(Path(sys.argv[1]))
def process(page, progress):
    print("begun", flush=True)
    time.sleep(60)
with project.open_store(hold_seconds=1.2) as store:
    options = Options(concurrency=3, lease_seconds=0.3).shared(store.lag_seconds)
    Worker(store, project.project_id, process, options, Quiet()).run()
"""


def test_what_a_killed_worker_had_in_hand_comes_back(fleet: Fleet) -> None:
    fleet.upload(12)
    root = fleet.machine("doomed").root
    worker = subprocess.Popen(
        [sys.executable, "-c", RUNS_UNTIL_KILLED, str(root)],
        env=environment_for(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline().startswith("begun")
        while fleet.counts().get("processing") != 3:
            time.sleep(0.05)
        worker.send_signal(signal.SIGKILL)
    worker.wait()
    fleet.work("one", "two")
    assert Counter(s["status"] for s in fleet.statuses().values()) == {"done": 12}
    attempts = Counter(status["attempts"] for status in fleet.statuses().values())
    assert attempts == {1: 9, 2: 3}
    # Without a lock both may have taken them up at the same moment: that is the only excuse.
    begun = Counter(fleet.begun)
    assert len(begun) == 12
    assert Counter(begun.values()) in [Counter({1: 12 - both, 2: both}) for both in range(4)]
    # Their leases had lapsed first; now their messages are back as well, and find nothing to do.
    deadline = time.monotonic() + 60
    while any(message.visible_at > time.monotonic() for message in fleet.server.messages):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fleet.work("one")
    assert (fleet.server.messages, fleet.begun) == ([], begun)


def test_of_two_that_see_a_lapsed_claim_one_takes_it_up(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start at the same moment, when the lease is long over: the patience of the one is over
    first, and the other is given nothing that is to be done, however old its reads are."""
    fleet.upload(6)
    project_id = fleet.machine().project_id
    with fleet.open("doomed", hold=0.1) as store, store.transaction() as tx:
        assert len(claim_pages(tx, project_id, 6, 0.1, utc_now())) == 6
    for message in fleet.server.messages:  # as of one who was killed
        message.visible_at = time.monotonic() + 60
    time.sleep(0.2)
    fleet.server.stale_reads = LAG
    parts = iter([0.1, 0.8])

    def uniform(low: float, high: float) -> float:
        return high if low else next(parts) * high

    monkeypatch.setattr("random.uniform", uniform)
    worked = fleet.work("one", "two", processor=slowly(0.05))
    assert sorted(one.taken_up for one in worked) == [0, 6]
    assert Counter(fleet.begun.values()) == {1: 6}
    assert {status["attempts"] for status in fleet.statuses().values()} == {2}


def test_a_message_that_comes_back_takes_its_page_up(fleet: Fleet) -> None:
    """Whoever had it has vanished: its page is claimed anew with it, without a look at the rest."""
    fleet.upload(1)
    project_id = fleet.machine().project_id
    claims = []
    for machine in ("one", "two"):
        with fleet.open(machine, hold=0.25) as store:
            with store.transaction() as tx:
                claims += claim_pages(tx, project_id, 1, 0.2, utc_now())
            time.sleep(0.35)
    assert [(claim.attempt, claim.status.lapses) for claim in claims] == [(1, 0), (2, 1)]
    assert fleet.server.operations == {"write": 1, "read": 2}


def test_a_worker_killed_between_pull_and_claim(fleet: Fleet) -> None:
    """Nothing in KV says that anybody has the pages; others wait for their messages."""
    fleet.upload(5)
    transport = Transport(prefix=fleet.server.prefix, token=fleet.server.token)
    client = QueueClient(transport, fleet.server.queue)
    assert len(client.pull(5, 0.6).messages) == 5
    client.close()
    [worked] = fleet.work("two")
    assert worked.done == 5
    assert fleet.server.operations == {"write": 5, "read": 10, "delete": 5}


def test_a_cancel_in_the_middle(fleet: Fleet) -> None:
    batch_id = fleet.upload(60)
    go, begun = threading.Event(), threading.Barrier(5)

    def waits(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        begun.wait(30)  # two workers have begun two pages each
        go.wait(30)
        return {"changes": 1}

    def cancel() -> None:
        begun.wait(30)
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
    with fleet.worker("one", slowly(0.3), concurrency=2) as worker:

        def stop() -> None:
            while not fleet.begun:
                time.sleep(0.01)
            for _ in range(times):
                worker.stop()

        stopper = threading.Thread(target=stop)
        stopper.start()
        worked = worker.run()
        stopper.join()
    assert worked.done + len(fleet.server.messages) == 10
    assert (worked.done > 0) == (times == 1)
    assert all(message.visible_at <= time.monotonic() for message in fleet.server.messages)
    fleet.work("two")
    assert fleet.counts() == {"done": 10}
    assert {status["attempts"] for status in fleet.statuses().values()} == {1}


def killed_before_it_publishes(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    def publish(self: QueueClient, bodies: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(QueueClient, "publish", publish)
        with pytest.raises(Killed):
            fleet.upload(pages)
    assert fleet.server.messages == []
    assert Counter(s["status"] for s in fleet.statuses().values()) == {"queued": pages}


def test_an_upload_killed_before_it_published_is_mended_by_verify(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_it_publishes(fleet, monkeypatch, 8)
    fleet.upload(8)  # run again, it ends
    project = fleet.machine("two")
    with fleet.open("two") as store:
        with monkeypatch.context() as lagging:
            lagging.setattr(CloudflareStore, "lag_seconds", 60.0)
            assert "not_in_queue" not in kinds(verify_batch(project, store).findings)  # too new
        time.sleep(2 * LAG)
        assert kinds(verify_batch(project, store).findings) == {"not_in_queue"}
        assert verify_batch(project, store, repair=True).repaired == 8
        assert len(fleet.server.messages) == 8
        assert verify_batch(project, store).findings == []
    fleet.work("one")
    assert fleet.counts() == {"done": 8}
    assert set(fleet.begun.values()) == {1}


def test_an_upload_killed_before_it_published_is_mended_by_the_next_worker(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_it_publishes(fleet, monkeypatch, 8)
    fleet.upload(8)
    fleet.work("one", "two")
    assert fleet.counts() == {"done": 8}


def test_a_message_that_the_queue_has_given_up_is_published_anew(fleet: Fleet) -> None:
    fleet.server.max_retries = 0
    fleet.upload(3)
    with fleet.open("one", hold=0.2) as store, store.transaction() as tx:
        assert len(list(tx.scan("queue:proj_0123456789ab:", limit=3))) == 3
    fleet.work("two")
    assert len(fleet.server.dead) == 3
    assert fleet.counts() == {"done": 3}


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


def kinds(findings: list[Any]) -> set[str]:
    return {finding.kind for finding in findings}


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
