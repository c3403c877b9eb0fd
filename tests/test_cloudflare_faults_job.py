"""The main job on a Cloudflare that has a bad day: faults, reads that lag, round trips that take.

On the tests' own server, with functions where waiting would cost time, and with commands where it
is about what a person sees.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.program import Program

from nimbus_tasks import nimbus
from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.monitor import watch_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.batch.wait import wait_for_batch
from nimbus_tasks.core.errors import NotFoundError, TimedOutError
from nimbus_tasks.core.keys import page_id_for
from nimbus_tasks.core.project import Project, save_project
from nimbus_tasks.core.queue_document import DocumentQueueStore
from nimbus_tasks.kv.cloudflare import store as store_module
from nimbus_tasks.kv.cloudflare.client import KVClient
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.kv.store import Store
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import Options
from tests.factories import Quiet, failing, invoke, no_changes, upload, write_map, write_maps
from tests.kv.kv_server import Answer, Call, KVServer, Value, faults_in_turn, seeded_faults
from tests.test_cloudflare_requests import write_large_maps

TOKEN = "t0ken-of-the-tests-0123456789abcdef"
HTML = Answer(200, b"<html>Sign in</html>", "text/html")
PAGES = 40
BROKEN = [f"dist/page-{number:03d}.html" for number in range(0, PAGES, 9)]


def make_project(root: Path, server: KVServer, **cloudflare: str) -> Project:
    """A project on that server, with its configuration written."""
    where = {"api_base": server.prefix, "namespace_id": server.namespace, **cloudflare}
    made = Project(root, "proj_0123456789ab", "test", "", store="cloudflare", cloudflare=where)
    save_project(made)
    return made


def statuses(server: KVServer) -> Counter[str]:
    """The states that the server has in the end, whatever anybody remembers."""
    with server.lock:
        values = [v for key, (v, _) in server.data.items() if key.startswith("status:")]
    return Counter(json.loads(value)["status"] for value in values)


# --- faults ---


@contextmanager
def hurried(project: Project, server: KVServer) -> Iterator[Store]:
    """The store as a command opens it, where nobody waits as long as it would."""
    transport = Transport(
        prefix=server.prefix, token=None, sleep=lambda seconds: time.sleep(min(seconds, 0.002))
    )
    client = KVClient(transport, server.namespace)
    journal = Journal(project.folder / "recent.sqlite3")
    store = CloudflareStore(client, journal, paced=False, sleep=lambda _: time.sleep(0.002))
    with store:
        yield (
            DocumentQueueStore(store, project.project_id) if project.queue == "document" else store
        )


def queued(server: KVServer, project: Project) -> list[Any]:
    """What is left in the queue, in either of its layouts."""
    document = server.data.get(f"queue:{project.project_id}", ('{"items": []}', None))[0]
    keys = [key for key in server.data if key.startswith(f"queue:{project.project_id}:")]
    return [*keys, *json.loads(document)["items"]]


def attempted(project: Project, store: Store, process: Any) -> list[tuple[str, int]]:
    """Work; the attempts that came to an end, each page with its number."""
    watcher = Quiet()
    Worker(store, project.project_id, process, Options(concurrency=3), watcher).run()
    return [(outcome.claim.page_id, outcome.claim.attempt) for outcome in watcher.outcomes]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("queue", ["keys", "document"])
def test_a_batch_ends_right_at_a_fifth_of_faults(
    tmp_path: Path, seed: int, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429, 500, connections reset before and after the write, cut answers, half of a bulk."""
    monkeypatch.setattr(store_module, "KEY_INTERVAL_SECONDS", 0.01)
    with KVServer(faults=seeded_faults(seed, rate=0.2), with_metadata=bool(seed % 2)) as server:
        project = replace(make_project(tmp_path, server), queue=queue)
        write_maps(tmp_path / "maps", PAGES)
        broken = {page_id_for(project.project_id, path) for path in BROKEN}
        process = failing(*BROKEN)
        with hurried(project, server) as store:
            assert upload(project, store, tmp_path / "maps").uploaded == PAGES
        with hurried(project, server) as store:
            first = attempted(project, store, process)
        assert statuses(server) == {"done": PAGES - len(broken), "failed": len(broken)}
        with hurried(project, server) as store:
            assert set(retry_pages(project, store).requeued) == broken
        with hurried(project, server) as store:
            second = attempted(project, store, process)
        with hurried(project, server) as store:
            path = write_report(project, store).path
            verified = verify_batch(project, store)
        assert server.errors == []
        assert len(server.requests) > 40

    pages = json.loads(path.read_text())["pages"]
    assert statuses(server) == {"done": PAGES}
    assert queued(server, project) == []
    assert verified.findings == []
    assert len(first) == len(set(first)) == PAGES
    assert sorted(second) == sorted((page_id, 2) for page_id in broken)
    for page in pages:
        assert (page["status"], page["changes"]) == ("done", 2)
        assert page["attempts"] == (2 if page["page_id"] in broken else 1)
        name = f"{project.project_id}:{page['page_id']}"
        assert json.loads(server.data[f"page:{name}"][0])["optimization"] == {"title": "better"}
        log = [json.dumps(e) for e in json.loads(server.data[f"logs:{name}"][0])["entries"]]
        assert len(log) == len(set(log)) == page["log_entries"]


# --- reads that lag ---


class Flickering(KVServer):
    """Each read is answered by this place or by that one: up to date, or two seconds behind."""

    def __init__(self) -> None:
        super().__init__(stale_reads=2.0)
        self.chance = random.Random(7)

    def read(self, key: str) -> Value | None:
        return super().read(key) if self.chance.random() < 0.5 else self.data.get(key)


@pytest.fixture(params=["late", "flickering"])
def late(request: pytest.FixtureRequest) -> Iterator[KVServer]:
    """A server whose reads are two seconds behind, all of them or some."""
    server = KVServer(stale_reads=2.0) if request.param == "late" else Flickering()
    with server:
        yield server
        assert server.errors == []


def test_a_directory_never_takes_an_older_read_for_the_truth(
    tmp_path: Path, late: KVServer
) -> None:
    """Each command opens the store anew, right after the one before it."""
    project = make_project(tmp_path, late)
    write_maps(tmp_path / "maps", 10)
    process = failing(BROKEN[0])
    with project.open_store() as store:
        upload(project, store, tmp_path / "maps")
    with project.open_store() as store:
        assert view_batch(project, store).tally.counts["queued"] == 10
    with project.open_store() as store:
        attempted(project, store, process)
    assert wait_for_batch(project).status == "partially_completed"
    time.sleep(2.1)
    with project.open_store() as store:
        assert len(retry_pages(project, store).requeued) == 1
    with pytest.raises(TimedOutError):
        wait_for_batch(project, interval=0.1, timeout=1)
    with project.open_store() as store:
        view = view_batch(project, store)
        assert (view.status, view.is_finished) == ("retrying", False)
    with project.open_store() as store:
        assert attempted(project, store, process) == [
            (page_id_for(project.project_id, BROKEN[0]), 2)
        ]
    assert wait_for_batch(project).status == "completed"
    with project.open_store() as store:
        assert verify_batch(project, store).findings == []
    with project.open_store() as store:
        upload(project, store, tmp_path / "maps")
        cancelled = cancel_batch(project, store, "latest")
        assert (cancelled.cancelled, cancelled.status) == (10, "cancelled")
    with project.open_store() as store:
        assert attempted(project, store, process) == []
    assert wait_for_batch(project).status == "cancelled"


def watch(project: Project, looks: list[dict[str, int]], until: threading.Event) -> None:
    """What a monitor of another directory sees, which has no memory of anything."""
    with project.open_store() as store:
        while not until.is_set():
            with suppress(NotFoundError):  # its record has not arrived yet
                looks.extend(
                    dict(view.tally.counts) for view in watch_batch(project, store, interval=0.05)
                )
            time.sleep(0.05)


@contextmanager
def monitored(project: Project) -> Iterator[list[dict[str, int]]]:
    """The counts that a monitor elsewhere sees during the block, and to the end of the batch."""
    looks: list[dict[str, int]] = []
    over = threading.Event()
    elsewhere = replace(project, root=project.root / "elsewhere")
    thread = threading.Thread(target=watch, args=(elsewhere, looks, over))
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join(120)
        assert not thread.is_alive()


def never_falls(numbers: list[int]) -> bool:
    return numbers == sorted(numbers)


def test_the_counts_of_a_monitor_elsewhere_never_run_backwards(
    tmp_path: Path, late: KVServer
) -> None:
    project = make_project(tmp_path, late)
    write_maps(tmp_path / "maps", 60)
    with project.open_store() as store:
        upload(project, store, tmp_path / "maps")
    time.sleep(2.1)

    def slow(page: Any, progress: Any) -> dict[str, Any]:
        time.sleep(0.15)
        return {"changes": 1}

    with monitored(project) as looks, project.open_store() as store:
        attempted(project, store, slow)
    assert looks[-1]["done"] == 60
    assert never_falls([look["done"] for look in looks])
    assert never_falls([60 - look["queued"] for look in looks])
    assert all(sum(look.values()) == 60 for look in looks)


@pytest.mark.parametrize("late", ["late", "flickering"], indirect=True)
def test_pages_that_a_monitor_has_seen_arrive_do_not_go_again(
    tmp_path: Path, late: KVServer
) -> None:
    project = make_project(tmp_path, late)
    write_maps(tmp_path / "maps", 30)
    with monitored(project) as looks:
        with project.open_store() as store:
            upload(project, store, tmp_path / "maps")
        time.sleep(2.5)
        with project.open_store() as store:
            attempted(project, store, no_changes)
    assert never_falls([30 - look["uploaded"] for look in looks])
    assert looks[-1]["done"] == 30


# --- two commands of one directory ---


def test_a_worker_that_begins_in_the_middle_of_a_cancel_claims_nothing_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants to claim when the cancel has written and has not noted that yet: it has to wait for
    its turn, or its claims would stand over the cancelled pages, and be waited for."""

    def work() -> None:
        with project.open_store() as store:
            crew.append(Worker(store, project.project_id, no_changes, Options(), Quiet()))
            crew[0].run()

    def turn(journal: Journal) -> Any:
        if threading.current_thread() is thread:
            wants_to_write.set()
        return take_turn(journal)

    crew: list[Worker] = []
    thread, wants_to_write = threading.Thread(target=work, daemon=True), threading.Event()
    take_turn = Journal.turn
    monkeypatch.setattr(Journal, "turn", turn)
    with KVServer() as server:
        project = make_project(tmp_path, server)
        write_maps(tmp_path / "maps", 10)
        with project.open_store() as store:
            upload(project, store, tmp_path / "maps")
        with project.open_store() as store:
            assert isinstance(store, CloudflareStore)
            put_many = store._client.put_many

            def crossed(entries: Any) -> None:
                put_many(entries)
                thread.start()
                assert wants_to_write.wait(60)

            store._client.put_many = crossed  # type: ignore[method-assign]
            cancel_batch(project, store, "latest")
        thread.join(30)  # half of what a lease would be waited for
        in_time, left = not thread.is_alive(), statuses(server)
        crew[0].stop()
        crew[0].stop()
        thread.join(60)
    assert in_time
    assert left == {"cancelled": 10}


# --- one write a second for a key ---


@pytest.mark.parametrize("queue", ["keys", "document"])
def test_no_key_is_written_twice_within_a_second_in_the_whole_job(
    tmp_path: Path, queue: str
) -> None:
    def slow(page: Any, progress: Any) -> dict[str, Any]:
        for step in range(5):
            progress(f"step {step}", step * 20)
            time.sleep(0.25)
        return {"changes": 1}

    with KVServer(strict_one_write_per_second=True) as server:
        project = replace(make_project(tmp_path, server), queue=queue)
        write_maps(tmp_path / "maps", 8)
        jobs: list[Callable[[Store], object]] = [
            lambda store: upload(project, store, tmp_path / "maps"),
            lambda store: attempted(project, store, failing(*BROKEN[:1], times=2)),
            lambda store: retry_pages(project, store),
            lambda store: attempted(project, store, failing(*BROKEN[:1], times=1)),
            lambda store: retry_pages(project, store),
            lambda store: attempted(project, store, no_changes),
            lambda store: upload(project, store, tmp_path / "maps"),
            lambda store: cancel_batch(project, store, "latest"),
            lambda store: retry_pages(project, store, include_cancelled=True),
            lambda store: attempted(project, store, slow),
            lambda store: verify_batch(project, store, repair=True),
        ]
        for job in jobs:
            with project.open_store() as store:
                job(store)
            assert server.written_twice == []
    assert statuses(server) == {"done": 8}


@pytest.mark.parametrize("fault", ["reset_after", "cut"])
def test_a_write_whose_answer_was_lost_is_not_sent_again_within_the_second(
    tmp_path: Path, fault: str
) -> None:
    with KVServer(strict_one_write_per_second=True) as server:
        project = make_project(tmp_path, server)
        server.faults = faults_in_turn(fault)
        with project.open_store() as store:
            store.put("k", "{}")
        assert server.data["k"][0] == "{}"
        assert server.written_twice == []


# --- round trips ---


class Timed(KVServer):
    """Keeps when each request began and ended."""

    def __init__(self, latency: float) -> None:
        super().__init__(latency=latency, headers=self._ended)
        self.began: dict[int, float] = {}
        self.spans: list[tuple[float, float]] = []

    def begin(self, method: str, path: str, headers: dict[str, str], size: int) -> Call:
        call = super().begin(method, path, headers, size)
        self.began[call.number] = time.monotonic()
        return call

    def _ended(self, call: Call) -> dict[str, str]:
        self.spans.append((self.began[call.number], time.monotonic()))
        return {}

    def rounds(self) -> int:
        """The longest row of requests of which each began after the one before had ended."""
        rounds, end = 0, 0.0
        for began, ended in sorted(self.spans, key=lambda span: span[1]):
            if began >= end:
                rounds, end = rounds + 1, ended
        return rounds


def test_an_upload_takes_the_round_trips_that_it_needs(tmp_path: Path) -> None:
    """1,000 pages of 8 KB at 40 ms a request. What is counted holds on a machine of any speed."""
    slept: list[float] = []
    server = Timed(latency=0.04)
    with server:
        project = make_project(tmp_path, server)
        write_large_maps(tmp_path / "maps", 1000)
        client = KVClient(Transport(prefix=server.prefix, token=None), server.namespace)
        journal = Journal(tmp_path / "journal.sqlite3")
        with CloudflareStore(client, journal, sleep=slept.append) as store:
            assert upload(project, store, tmp_path / "maps").uploaded == 1000
    assert server.rounds() <= len(server.requests) <= 10
    assert server.rounds() <= 9, [path for _, path in server.requests]
    # The batch's record is written before and after, and so a second apart.
    assert sum(slept) <= 1.1


# --- what a person sees ---


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


COMMANDS = [
    ("nimbus.upload",),
    ("nimbus.worker",),
    ("nimbus.batch.list",),
    ("nimbus.batch.status", "--batch=latest"),
    ("nimbus.batch.monitor",),
    ("nimbus.batch.wait",),
    ("nimbus.batch.report",),
    ("nimbus.batch.metrics",),
    ("nimbus.batch.retry",),
    ("nimbus.batch.cancel", "--batch=latest"),
    ("nimbus.batch.verify",),
]

#: Those that begin with a listing.
LISTING_COMMANDS = [("nimbus.worker",), ("nimbus.batch.list",), ("nimbus.batch.wait",)]


def refused(project: Project, server: KVServer, *command: str, token: str) -> str:
    """A command that ends with exit code 5 after one request; its one line."""
    write_map(project.folder / "maps", "a.json", {"path": "a", "blocks": [{"type": "p"}]})
    server.requests.clear()
    ran = invoke(project.root, *command, CLOUDFLARE_API_TOKEN=token)
    assert (ran.returncode, ran.stdout) == (5, ""), (command, ran.stdout, ran.stderr)
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert len(server.requests) == 1, (command, server.requests)
    for shown in (ran.stderr.encode(), everything_in(project.folder)):
        assert token.encode() not in shown
    return ran.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_wrong_token_is_one_line_and_one_request(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with KVServer(token=TOKEN) as server:
        project = make_project(tmp_path, server)
        line = refused(project, server, *command, token="wr0ng-t0ken-fedcba9876543210")
    assert "does not accept the API token" in line
    assert "CLOUDFLARE_API_TOKEN" in line


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda command: command[0])
def test_a_wrong_namespace_and_a_proxys_page_are_one_line_and_one_request(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with KVServer(token=TOKEN) as server:
        project = make_project(tmp_path, server, namespace_id="0" * 32)
        assert "no such KV namespace" in refused(project, server, *command, token=TOKEN)
        project = make_project(tmp_path, server)
        server.faults = lambda _: HTML
        assert "something that is not its API's" in refused(project, server, *command, token=TOKEN)


@pytest.mark.parametrize("command", LISTING_COMMANDS, ids=lambda command: command[0])
def test_a_wrong_token_is_one_line_where_something_has_been_written_lately(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with KVServer(token=TOKEN) as server:
        project = make_project(tmp_path, server)
        write_maps(project.folder / "maps", 3)
        assert invoke(tmp_path, "nimbus.upload", CLOUDFLARE_API_TOKEN=TOKEN).returncode == 0
        refused(project, server, *command, token="wr0ng-t0ken-fedcba9876543210")


def test_the_token_is_nowhere_to_be_read(tmp_path: Path) -> None:
    """Neither in what goes well, nor in what Invoke shows of its configuration with ``-d``."""
    with KVServer(token=TOKEN) as server:
        project = make_project(tmp_path, server)
        write_maps(project.folder / "maps", 3)
        for arguments, code in (
            (("-d", "nimbus.upload", "nimbus.worker", "nimbus.batch.report"), 0),
            (("-d", "nimbus.batch.status", "--batch=nobody"), 4),
            (("-d", "nimbus.doctor"), 0),
        ):
            ran = invoke(tmp_path, *arguments, CLOUDFLARE_API_TOKEN=TOKEN)
            assert ran.returncode == code, ran.stderr
            assert TOKEN not in ran.stdout + ran.stderr
    assert TOKEN.encode() not in everything_in(tmp_path)
    assert all(seen["Authorization"] == f"Bearer {TOKEN}" for seen in server.seen)


def test_nobody_there_is_a_few_tries_within_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within this process: no option shortens the thirty seconds, so their clock is the test's."""
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    impatient = partial(Transport, sleep=sleep, clock=lambda: now[0])
    monkeypatch.setattr("nimbus_tasks.kv.cloudflare.transport.Transport", impatient)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with KVServer() as server:
        make_project(tmp_path, server, api_base=base)
    program = Program(namespace=Collection(nimbus), name="nimbus")
    with pytest.raises(SystemExit) as ended:
        program.run(["nimbus", "nimbus.batch.status", "--batch=latest"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (5, "")
    *waits, line = err.splitlines()
    assert "cannot be reached: connection refused" in line
    assert all("next try in" in wait for wait in waits)
    assert 3 <= len(slept) <= 8
    assert sum(slept) <= 30
