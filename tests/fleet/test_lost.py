"""A worker or an upload that is killed, a message that is lost: somebody else goes on with it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.claims import claim_pages
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.kv.cloudflare.queues import QueueClient
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.cloudflare.transport import Transport
from tests.factories import KilledError, environment_for
from tests.fleet.conftest import LAG, Fleet, slowly

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
    deadline = time.monotonic() + 60
    try:
        with worker.stdout:
            assert worker.stdout.readline().startswith("begun")
            while (counts := fleet.counts()).get("processing") != 3:
                assert time.monotonic() < deadline, counts
                time.sleep(0.05)
    finally:
        worker.kill()
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
    first, and the other is given nothing that is to be done."""
    fleet.upload(6)
    project_id = fleet.machine().project_id
    with fleet.open("doomed", hold=0.1) as store, store.transaction() as tx:
        assert len(claim_pages(tx, project_id, 6, 0.1, utc_now())) == 6
    for message in fleet.server.messages:  # as of one who was killed
        message.visible_at = time.monotonic() + 60
    time.sleep(0.2)
    patience = iter([0.05, 5.0])

    def uniform(low: float, high: float) -> float:
        return high if low else next(patience)

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


def killed_before_it_publishes(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    def publish(self: QueueClient, bodies: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(QueueClient, "publish", publish)
        with pytest.raises(KilledError):
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


def kinds(findings: list[Any]) -> set[str]:
    return {finding.kind for finding in findings}
