"""A queue that is gone or refuses, publishing that is cut off, two that do the same at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.errors import StoreError, StoreUnreachableError
from nimbus_tasks.doctor import examine
from nimbus_tasks.kv.cloudflare.queues import QueueClient
from nimbus_tasks.processors.llm_settings import LlmSettings
from nimbus_tasks.worker.rehearsal import rehearse
from tests.factories import no_changes, upload, write_maps
from tests.fleet.conftest import Fleet
from tests.kv.kv_server import Answer, Call

FORBIDDEN = Answer(
    403, b'{"success": false, "errors": [{"code": 10000, "message": "Authentication error"}]}'
)


def at(path: str, fault: str | Answer) -> Callable[[Call], str | Answer | None]:
    """Requests to that path have the fault."""
    return lambda call: fault if call.path.endswith(path) else None


@pytest.mark.parametrize("fault", [FORBIDDEN, Answer(404, b"{}")])
def test_a_queue_that_refuses_ends_a_worker_when_its_pages_have_ended(
    fleet: Fleet, fault: Answer
) -> None:
    """What they have cost is written: KV is there."""
    fleet.upload(10)

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        fleet.server.faults = at("/pull", fault)
        return no_changes(page, progress)

    with fleet.worker("one", process, concurrency=2) as worker, pytest.raises(StoreError):
        worker.run()
    fleet.server.faults = None
    states = Counter(status["status"] for status in fleet.statuses().values())
    assert states == {"done": 2, "queued": 8}
    assert len(fleet.server.messages) == 8
    fleet.work("two")
    assert fleet.counts() == {"done": 10}
    assert set(fleet.begun.values()) == {1}


def test_a_queue_that_is_out_of_reach_keeps_no_outcome_from_being_written(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages end while it is away, and one begins when it is back."""
    monkeypatch.setattr("nimbus_tasks.core.queue_messages.OUTAGE_PAUSE_SECONDS", 0.1)
    fleet.upload(3)
    pull, is_back, turns = QueueClient.pull, threading.Event(), count()

    def pulled(self: QueueClient, limit: int, hold_seconds: float) -> Any:
        if len(fleet.begun) == 2 and not is_back.is_set():
            raise StoreUnreachableError("no way there")
        return pull(self, min(limit, 2), hold_seconds)

    monkeypatch.setattr(QueueClient, "pull", pulled)

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        if next(turns) == 1:  # the second goes on until the first is written
            deadline = time.monotonic() + 30
            while all(status["status"] != "done" for status in fleet.statuses().values()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            is_back.set()
        return no_changes(page, progress)

    with fleet.worker("one", process, concurrency=2) as worker:
        assert worker.run().done == 3
    assert is_back.is_set()
    assert set(fleet.begun.values()) == {1}


def test_publishing_that_is_cut_off_halfway_is_ended_by_whoever_works(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = QueueClient.publish

    def half(self: QueueClient, bodies: Any) -> None:
        some = list(bodies)
        publish(self, some[: len(some) // 2])
        raise StoreUnreachableError("no way there")

    with monkeypatch.context() as patch:
        patch.setattr(QueueClient, "publish", half)
        with pytest.raises(StoreUnreachableError):
            fleet.upload(20)
    assert len(fleet.server.messages) == 10
    fleet.upload(20)  # run again, it ends, and knows nothing of messages
    assert len(fleet.server.messages) == 10
    fleet.work("one", "two")
    assert fleet.counts() == {"done": 20}


def test_a_token_that_may_not_use_the_queue_is_found_before_anything_is_written(
    fleet: Fleet,
) -> None:
    fleet.server.faults = lambda call: FORBIDDEN if "/queues/" in call.path else None
    with pytest.raises(StoreError, match="not allowed") as caught:
        fleet.upload(3)
    assert "Queues: Edit" in str(caught.value.advice)
    assert not [key for key in fleet.server.data if key.startswith("status:")]
    check = {check.name: check for check in examine(fleet.machine().root)}["queue"]
    assert (check.level, check.exit_code) == ("error", 5)
    assert "Queues: Edit" in str(check.advice)


def test_one_that_may_only_look_at_the_queue_loses_no_page(fleet: Fleet) -> None:
    """It is found when the pages are there, and their messages are not."""
    fleet.server.faults = at("/messages/batch", FORBIDDEN)
    with pytest.raises(StoreError, match="not allowed"):
        fleet.upload(3)
    fleet.server.faults = None
    assert fleet.server.messages == []
    fleet.upload(3)
    fleet.work("two")
    assert fleet.counts() == {"done": 3}


def test_two_uploads_at_once_are_two_batches(fleet: Fleet) -> None:
    machines = [fleet.machine(name) for name in ("one", "two")]
    for number, project in enumerate(machines):
        write_maps(project.folder / "maps" / f"site{number}", 15)
    sent: list[str | None] = []

    def send(name: str) -> None:
        project = fleet.machine(name)
        folder = next((project.folder / "maps").iterdir())
        for path in folder.iterdir():
            path.write_text(path.read_text().replace("dist/", f"{name}/"))
        with fleet.open(name) as store:
            sent.append(upload(project, store, folder).batch_id)

    threads = [threading.Thread(target=send, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(fleet.server.messages) == 30
    worked = fleet.work("one", "two", "three", "four", concurrency=2)
    assert sum(one.done for one in worked) == 30
    assert set(fleet.begun.values()) == {1}
    assert fleet.server.messages == []


def test_the_advice_is_a_command_that_is_taken(fleet: Fleet) -> None:
    """--batch is refused where messages hand out the pages."""
    fleet.upload(2)
    with fleet.open("two") as store:
        steps = next_steps_of(view_batch(fleet.machine("two"), store))
    assert [step.command for step in steps] == ["invoke nimbus.worker"]


def test_a_dry_run_finds_a_page_that_no_message_shows(fleet: Fleet) -> None:
    batch_id = fleet.upload(2)
    settings = LlmSettings(model="small")
    with fleet.open("two") as store:
        rehearsal = rehearse(fleet.machine("two"), store, settings, batch_id)
    assert rehearsal.path in ("dist/page-000.html", "dist/page-001.html")
    assert fleet.server.operations == {"write": 2}  # it takes none
