"""The worker: claims in order, holds what it has, writes each outcome once, gives back the rest."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.claims import claim_pages, finish_pages, release_claims
from nimbus_tasks.core.clock import iso_after, utc_now
from nimbus_tasks.core.errors import ProcessorUnusableError, StoreUnreachableError
from nimbus_tasks.core.keys import logs_prefix, page_id_for, queue_prefix, status_key
from nimbus_tasks.core.leases import LEASELESS_SECONDS
from nimbus_tasks.core.logs import read_logs
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.worker import engine
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import Options
from nimbus_tasks.worker.upkeep import Upkeep
from tests.factories import Quiet, a_map, failing, no_changes, upload, work, write_map


def counts(project: Project, store: Store, batch: str | None = None) -> dict[str, int]:
    counted = view_batch(project, store, batch).tally.counts
    return {state: count for state, count in counted.items() if count}


class Recorder:
    """A processor that remembers which pages it saw, in which order."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        self.paths.append(page["source_path"])
        return {"changes": 1}


def test_pages_are_claimed_oldest_first(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    seen = Recorder()
    assert work(project, store, seen, concurrency=1).done == 10
    assert seen.paths == [f"dist/page-{n:03d}.html" for n in range(10)]


def test_retried_pages_go_ahead_of_new_ones(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-007.html"))
    write_map(maps / "later", "new.json", a_map("dist/new.html"))
    upload(project, store, maps / "later")
    retry_pages(project, store, batches.heads(store, project.project_id)[1].batch_id)
    seen = Recorder()
    work(project, store, seen, concurrency=1)
    assert seen.paths == ["dist/page-007.html", "dist/new.html"]


def test_a_worker_of_one_batch_leaves_the_others_alone(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    write_map(maps / "later", "new.json", a_map("dist/new.html"))
    second = upload(project, store, maps / "later").batch_id
    assert work(project, store, batch_id=second).done == 1
    assert counts(project, store, first) == {"queued": 10}


def test_failures_are_tried_again_as_often_as_allowed(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    worked = work(project, store, failing("dist/page-002.html", times=2), max_attempts=3)
    assert (worked.done, worked.failed, worked.tried_again) == (10, 0, 2)
    page_id = page_id_for(project.project_id, "dist/page-002.html")
    entry = store.get(f"logs:{project.project_id}:{page_id}")
    errors = [e["data"]["attempt"] for e in read_logs(entry) if e["level"] == "error"]
    assert errors == [1, 2]


def test_every_page_has_a_log_of_every_step(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store, failing())
    logs = [store.get(info.key) for info in store.scan(logs_prefix(project.project_id))]
    assert [[e["step"] for e in read_logs(log)] for log in logs] == [["look", "done"]] * 10


def test_the_batch_record_says_in_the_end_what_its_pages_say(
    project: Project, store: Store, maps: Path
) -> None:
    batch_id = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-002.html"))
    entry = store.get(f"batch:{project.project_id}:{batch_id}")
    assert entry is not None
    record = json.loads(entry.value)
    assert record["status"] == "partially_completed"
    assert (record["summary"]["completed"], record["summary"]["failed"]) == (9, 1)
    failed = page_id_for(project.project_id, "dist/page-002.html")
    assert {k for k, page in record["pages"].items() if page["status"] == "failed"} == {failed}


class StopsIn:
    """A processor that stops its worker from within the first pages, and waits for a word."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.go = threading.Event()
        self.worker: Worker | None = None

    def __call__(self, page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        assert self.worker is not None
        for _ in range(self.times):
            self.worker.stop()
        self.times = 0
        self.go.wait(20)
        return {"changes": 1}


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_is_stopped_loses_nothing(
    project: Project, store: Store, maps: Path, times: int
) -> None:
    """Asked once, it lets pages in flight end; asked twice, it gives them back at once."""
    upload(project, store, maps)
    process = StopsIn(times)
    if times == 1:
        process.go.set()
    process.worker = Worker(store, project.project_id, process, Options(concurrency=1), Quiet())
    worked = process.worker.run()
    assert process.worker.was_stopped
    assert worked.done == (1 if times == 1 else 0)
    assert worked.released == (0 if times == 1 else 1)
    assert counts(project, store).get("processing", 0) == 0
    process.go.set()
    seen = Recorder()
    work(project, store, seen, concurrency=1)
    assert len(seen.paths) == 10 - worked.done
    assert seen.paths == sorted(seen.paths)  # what was given back has its old place
    attempts = {page.status["attempts"] for page in pages(project, store)}
    assert attempts == {1}


def pages(project: Project, store: Store) -> list[PageInfo]:
    head = batches.find(store, project.project_id, None)
    return list(batches.pages_of(store, head))


def test_a_cancel_during_the_work_starts_no_further_page(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        with project.open_store() as another:
            cancel_batch(project, another, "latest")
        return {"changes": 1}

    worked = work(project, store, process, concurrency=1)
    assert worked.done == 1
    assert counts(project, store) == {"done": 1, "cancelled": 9}
    assert worked.batches == {view_batch(project, store).head.batch_id: "cancelled"}


def test_pages_of_a_worker_that_died_are_taken_up_and_its_late_outcome_refused(
    project: Project, store: Store, maps: Path
) -> None:
    from nimbus_tasks.core.claims import Outcome

    upload(project, store, maps)
    with store.transaction() as tx:
        [lost] = claim_pages(tx, project.project_id, 1, lease_seconds=-1, now=utc_now())
    worked = work(project, store)
    assert (worked.done, worked.taken_up) == (10, 1)
    late = Outcome(lost, "", "", 1, error="too late", code="late")
    with store.transaction() as tx:
        assert finish_pages(tx, project.project_id, [late], utc_now()) == ([], [late])
    assert counts(project, store) == {"done": 10}
    assert sorted(page.status["attempts"] for page in pages(project, store)) == [1] * 9 + [2]


def test_a_worker_waits_for_the_lease_of_one_that_may_be_gone(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.1)
    upload(project, store, maps)
    with store.transaction() as tx:
        claim_pages(tx, project.project_id, 3, lease_seconds=1, now=utc_now())
    watcher = Quiet()
    worked = Worker(store, project.project_id, no_changes, Options(), watcher).run()
    assert worked.done == 10
    assert any("may be gone" in reason for reason in watcher.reasons)


def test_step_and_progress_are_in_the_store_while_a_page_is_processed(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PROGRESS_SECONDS", 0.05)
    upload(project, store, maps)
    seen = threading.Event()

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        progress("asking", 40)
        with project.open_store() as another:
            while not seen.is_set():
                for info in view_batch(project, another).in_flight:
                    if (info.status.get("step"), info.status.get("progress")) == ("asking", 40):
                        seen.set()
        return {}

    work(project, store, process, concurrency=1)
    assert seen.is_set()


def test_the_batch_record_says_that_work_has_begun_while_the_first_page_takes_long(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    seen: list[str] = []

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        with project.open_store() as another:
            give_up = time.monotonic() + 20
            while seen[-1:] != ["processing"] and time.monotonic() < give_up:
                seen.append(batches.heads(another, project.project_id)[0].status)
        return {}

    work(project, store, process, concurrency=1)
    assert seen[-1] == "processing"


def test_a_worker_may_run_forever_until_it_is_stopped(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)

    class StopsWhenItWaits(Quiet):
        def waits(self, reason: str) -> None:
            worker.stop()

    worker = Worker(
        store, project.project_id, no_changes, Options(forever=True), StopsWhenItWaits()
    )
    assert worker.run().done == 10


class StopsWhenItHasWaited(Quiet):
    """Stops a worker that waits for what will never come."""

    worker: Worker

    def waits(self, reason: str) -> None:
        super().waits(reason)
        if len(self.reasons) > 20:
            self.worker.stop()


@pytest.mark.parametrize(("silent", "done"), [(60, 9), (2 * LEASELESS_SECONDS, 10)])
def test_a_claim_without_a_lease_is_taken_up_when_long_silent_and_not_waited_for(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch,
    silent: float, done: int,
) -> None:  # fmt: skip
    """A Worker written to the seed gives ``processing {started, current_step, progress}``."""
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.001)
    batch = upload(project, store, maps).batch_id
    key = status_key(project.project_id, page_id_for(project.project_id, "dist/page-001.html"))
    status = {"status": "processing", "batch_id": batch, "updated": iso_after(-silent)}
    store.put(key, json.dumps({**status, "processing": {"progress": 10}}), status)
    watcher = StopsWhenItHasWaited()
    watcher.worker = Worker(store, project.project_id, no_changes, Options(), watcher)
    assert watcher.worker.run().done == done
    assert not watcher.worker.was_stopped


def test_a_page_that_is_queued_and_in_no_queue_is_put_back_by_the_worker(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    store.delete_many([info.key for info in store.scan(queue_prefix(project.project_id))])
    assert work(project, store).done == 10


def test_an_outage_of_the_store_loses_no_outcome_and_no_page_is_processed_twice(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    monkeypatch.setattr(engine, "PROGRESS_SECONDS", 0.001)
    processed: list[str] = []
    real, left = store.transaction, 5

    @contextmanager
    def transaction() -> Iterator[KeyValues]:
        nonlocal left
        with real() as tx:
            yield tx
            if processed and left:
                left -= 1
                raise StoreUnreachableError("nobody answers")

    def process(page: Any, progress: Any) -> dict[str, Any]:
        processed.append(page["page_id"])
        return {}

    monkeypatch.setattr(store, "transaction", transaction)
    watcher = Quiet()
    worker = Worker(store, project.project_id, process, Options(concurrency=2), watcher)
    assert worker.run().done == 10
    assert (left, len(processed), len(set(processed))) == (0, 10, 10)
    assert watcher.reasons[0] == "the store (nobody answers)"


def test_a_store_that_stays_away_ends_the_worker(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    monkeypatch.setattr(engine, "OUTAGE_SECONDS", 0.05)
    monkeypatch.setattr(engine, "PROGRESS_SECONDS", 0.001)

    @contextmanager
    def transaction() -> Iterator[KeyValues]:
        raise StoreUnreachableError("nobody answers")
        yield store

    monkeypatch.setattr(store, "transaction", transaction)
    with pytest.raises(StoreUnreachableError):
        work(project, store)


def test_an_idle_worker_bears_an_outage_too(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.001)
    upload(project, store, maps)
    real, left = store.scan, 8

    def scan(*args: Any, **options: Any) -> Any:
        nonlocal left
        if worker.worked.done == 10 and left:
            left -= 1
            raise StoreUnreachableError("nobody answers")
        return real(*args, **options)

    monkeypatch.setattr(store, "scan", scan)
    watcher = StopsWhenItHasWaited()
    worker = Worker(store, project.project_id, no_changes, Options(forever=True), watcher)
    watcher.worker = worker
    assert worker.run().done == 10
    assert left == 0
    assert "the store (nobody answers)" in watcher.reasons


def test_ctrl_c_in_an_outage_loses_no_outcome(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    real, left = store.transaction, 6

    @contextmanager
    def transaction() -> Iterator[KeyValues]:
        nonlocal left
        with real() as tx:
            yield tx
            if worker.was_stopped and left:
                left -= 1
                raise StoreUnreachableError("nobody answers")

    def process(page: Any, progress: Any) -> dict[str, Any]:
        if page["source_path"] == "dist/page-000.html":
            worker.stop()
        return {}

    monkeypatch.setattr(store, "transaction", transaction)
    worker = Worker(store, project.project_id, process, Options(concurrency=3), Quiet())
    worked = worker.run()
    assert left == 0
    assert worked.done > 0
    assert counts(project, store) == {"done": worked.done, "queued": 10 - worked.done}
    assert view_batch(project, store).tally.attempts == worked.done


def test_a_worker_writes_down_the_end_of_a_batch_that_another_did_not_come_to(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    with monkeypatch.context() as killed:
        killed.setattr(Upkeep, "save", lambda self: None)
        killed.setattr(Upkeep, "close", lambda self: None)
        work(project, store)
    [head] = batches.heads(store, project.project_id)
    assert not head.is_final
    assert work(project, store).done == 0
    [head] = batches.heads(store, project.project_id)
    assert head.status == "completed"


def test_a_worker_that_is_busy_takes_up_what_another_has_lost_meanwhile(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may take an hour: the others should not wait for that to end."""
    monkeypatch.setattr(engine, "LAPSED_SECONDS", 0.05)
    upload(project, store, maps)
    others: set[str] = set()
    rest_is_done = threading.Event()

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        others.add(page["source_path"])
        if page["source_path"] == "dist/page-000.html":
            assert rest_is_done.wait(20)
        elif len(others) == 10:
            rest_is_done.set()
        return {"changes": 1}

    with store.transaction() as tx:  # by one that vanishes, of the first two pages
        claims = claim_pages(tx, project.project_id, 2, 0.5, utc_now())
        release_claims(tx, project.project_id, claims[:1], utc_now())
    worked = work(project, store, process, concurrency=2)
    assert (worked.done, worked.taken_up) == (10, 1)


def test_a_clock_that_is_set_forward_takes_no_page_from_who_has_it(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a computer that was asleep: by its clock the leases are over, and nobody is gone."""
    monkeypatch.setattr(engine, "LAPSED_SECONDS", 0.05)
    ahead = [timedelta()]
    for module in ("engine", "upkeep"):
        name = f"nimbus_tasks.worker.{module}.utc_now"
        monkeypatch.setattr(name, lambda: utc_now() + ahead[0])
    upload(project, store, maps)

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        ahead[0] = timedelta(hours=1)
        time.sleep(0.4)
        return {"changes": 0}

    worked = work(project, store, process, concurrency=5)
    assert (worked.done, worked.taken_up, worked.refused) == (10, 0, 0)


def test_pages_whose_records_have_not_all_arrived_are_waited_for(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The items are seen before the statuses, or before the newer ones."""
    monkeypatch.setattr(type(store), "lag_seconds", 60.0)
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.01)
    upload(project, store, maps)
    keys = [status_key(project.project_id, page_id_for(project.project_id, f"dist/page-00{n}.html"))
            for n in range(10)]  # fmt: skip
    arrived = store.get_many(keys)
    store.delete_many(keys[:5])
    for key in keys[5:]:
        value = {**json.loads(arrived[key].value), "status": "failed", "updated": "2026-01-01"}
        store.put(key, json.dumps(value))

    class Arrives(Quiet):
        def waits(self, reason: str) -> None:
            super().waits(reason)
            if len(self.reasons) == 5:
                store.put_many(arrived.values())

    watcher = Arrives()
    worker = Worker(store, project.project_id, no_changes, Options(), watcher)
    assert worker.run().done == 10
    assert "not all to be seen yet" in watcher.reasons[0]


def test_a_processor_that_can_do_no_page_gives_its_pages_back(
    project: Project, store: Store, maps: Path
) -> None:
    """What is in flight then keeps its result; the rest is queued as if it had not been begun."""
    upload(project, store, maps)
    first, ended = threading.Event(), threading.Event()

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        if page["source_path"] == "dist/page-000.html":
            first.set()
            assert ended.wait(20)
            return {"changes": 1}
        assert first.wait(20)
        if page["source_path"] == "dist/page-003.html":
            ended.set()
        raise ProcessorUnusableError("the key is refused")

    crew = Worker(store, project.project_id, process, Options(concurrency=4), Quiet())
    worked = crew.run()
    assert str(crew.unusable) == "the key is refused"
    assert (worked.done, worked.failed, worked.released) == (1, 0, 3)
    assert counts(project, store) == {"queued": 9, "done": 1}
    assert view_batch(project, store).tally.attempts == 1


def test_a_worker_goes_by_the_interval_that_the_store_has_now(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows while a batch is worked on, where the requests of an account run low."""
    worker = Worker(store, project.project_id, no_changes, Options(first_ahead=1.0), Quiet())
    seen = []
    for interval in (0.0, 1.0, 10.0):
        monkeypatch.setattr(type(store), "write_interval", interval)
        seen.append(worker._wanted())
    assert seen == [4, 4 + 3 * 4, 4 + 30 * 4]
