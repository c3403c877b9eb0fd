"""A project that several machines work on: each has a directory of its own, and nothing else."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.project import Project, save_project
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.store import Store
from nimbus_tasks.processors import Processor
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import Options, Worked
from tests.factories import Quiet, invoke, no_changes, upload, write_maps
from tests.kv.queue_server import QueueServer

TOKEN = "secret-token-that-nobody-may-see"
LAG = 0.25
#: What else a test need not wait for as long as a person would.
QUICK = {
    "core.queue_messages.QUIET_SECONDS": 0.25,
    "worker.engine.LOOK_SECONDS": 0.1,
    "worker.engine.IDLE_SECONDS": 0.05,
    "kv.cloudflare.store.KEY_INTERVAL_SECONDS": 0.05,
    "kv.cloudflare.transport.FIRST_BACKOFF_SECONDS": 0.05,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token, and a lag that a test can wait for."""
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", TOKEN)
    monkeypatch.setattr(CloudflareStore, "lag_seconds", LAG)
    for name, value in QUICK.items():
        monkeypatch.setattr(f"nimbus_tasks.{name}", value)


def slowly(seconds: float) -> Processor:
    """A processor that takes so long for a page."""

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        time.sleep(seconds)
        return {"changes": 1}

    return process


def beginning_together(count: int, then: Processor) -> Processor:
    """A processor like ``then``, whose first ``count`` pages wait for one another: so many are at
    work at once, however late a worker begins."""
    together, turns = threading.Barrier(count), itertools.count()

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> Mapping[str, Any]:
        if next(turns) < count:
            together.wait(60)
        return then(page, progress)

    return process


@dataclass
class Fleet:
    """The server, and the machines that have a directory. ``begun`` counts attempts by path."""

    server: QueueServer
    folder: Path
    begun: Counter[str] = field(default_factory=Counter)

    def machine(self, name: str = "one") -> Project:
        """The project as that machine has it."""
        root = self.folder / name
        cloudflare = {
            "api_base": self.server.prefix,
            "namespace_id": self.server.namespace,
            "queue_id": self.server.queue,
        }
        made = Project(
            root,
            "proj_0123456789ab",
            "test",
            "2026-11-24T08:13:02Z",
            store="cloudflare",
            queue="cloudflare-queues",
            cloudflare=cloudflare,
        )
        if not root.exists():
            save_project(made)
        return made

    def upload(self, pages: int, **options: Any) -> str:
        """A batch, sent by machine ``one``."""
        project = self.machine()
        write_maps(project.folder / "maps", pages)
        with project.open_store() as store:
            sent = upload(project, store, project.folder / "maps", **options)
        assert sent.batch_id is not None
        return sent.batch_id

    @contextmanager
    def worker(
        self, machine: str, processor: Processor = no_changes, hold: float = 30.0, **options: Any
    ) -> Iterator[Worker]:
        """A worker of that machine; how a run of it began is counted. Its leases outlast whatever
        else the computer does: a page that is taken up while its holder cannot go on is worked on
        twice, as it is to be."""
        project = self.machine(machine)

        def counting(page: Mapping[str, Any], progress: Callable[..., None]) -> Any:
            self.begun[page["source_path"]] += 1
            return processor(page, progress)

        with project.open_store(hold_seconds=hold) as store:
            chosen = Options(**{"lease_seconds": 60.0, **options}).shared(store.lag_seconds)
            yield Worker(store, project.project_id, counting, chosen, Quiet())

    def work(self, *machines: str, **options: Any) -> list[Worked]:
        """Workers of these machines at once, until each of them ends."""
        worked: list[Worked] = []
        errors: list[BaseException] = []

        def run(machine: str) -> None:
            try:
                with self.worker(machine, **options) as worker:
                    worked.append(worker.run())
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        threads = [threading.Thread(target=run, args=(machine,)) for machine in machines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert errors == []
        assert not any(thread.is_alive() for thread in threads)
        return worked

    @contextmanager
    def open(self, machine: str = "one", hold: float | None = None) -> Iterator[Store]:
        with self.machine(machine).open_store(hold_seconds=hold) as store:
            yield store

    def counts(self, machine: str = "watcher") -> dict[str, int]:
        """The states of the latest batch's pages that are not 0."""
        project = self.machine(machine)
        with project.open_store() as store:
            counts = view_batch(project, store).tally.counts
        return {state: count for state, count in counts.items() if count}

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The status records as KV has them, by path."""
        with self.server.lock:
            found = [json.loads(v) for k, (v, _) in self.server.data.items() if k[:7] == "status:"]
        return {status["path"]: status for status in found}

    def run(self, *arguments: str, machine: str = "one", code: int = 0, token: str = TOKEN) -> Any:
        """A command of a machine, and its exit code checked."""
        root = self.machine(machine).root
        ran: subprocess.CompletedProcess[str] = invoke(root, *arguments, CLOUDFLARE_API_TOKEN=token)
        assert ran.returncode == code, (arguments, ran.returncode, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return ran

    def run_each(self, *tasks: str, **options: Any) -> list[Any]:
        """Commands that do not disturb each other, at once."""
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(lambda task: self.run(*task.split(), **options), tasks))


@pytest.fixture
def server() -> Iterator[QueueServer]:
    running = QueueServer(token=TOKEN)
    with running:
        yield running
    assert running.errors == []


@pytest.fixture
def fleet(server: QueueServer, tmp_path: Path) -> Fleet:
    return Fleet(server, tmp_path)
