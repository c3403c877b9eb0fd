"""The Worker on Cloudflare's own runtime, as ``nimbus.cloud.dev`` starts it, once a session."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from nimbus_tasks.cloud.dev import LocalWorker, running
from nimbus_tasks.cloud.init import write_worker
from nimbus_tasks.cloud.wrangler import find_wrangler, load_worker
from nimbus_tasks.core.project import Project, new_project, save_project
from nimbus_tasks.init import init_project
from tests.cloud.service import Service
from tests.factories import a_map, invoke, upload, write_map
from tests.wrangler.installed import MODULES, need_wrangler, quiet_environment

HERE = Path(__file__).parent
NAMESPACE = "0" * 32
#: What the local KV of all tests may take.
ROOM_BYTES = 500_000_000


@pytest.fixture(scope="session")
def local_worker() -> Iterator[LocalWorker]:
    """Written by ``init``, run by ``dev``; its entry is ``under_test.js``."""
    need_wrangler()
    with TemporaryDirectory(prefix="nimbus-cloud-", dir=memory_folder()) as folder:
        yield from _local_worker(Path(folder))


def memory_folder() -> Path | None:
    """Where files cost no disk, with room for the local KV; none, where there is no such place."""
    shared = Path("/dev/shm")
    has_room = shared.is_dir() and os.access(shared, os.W_OK)
    return shared if has_room and shutil.disk_usage(shared).free > ROOM_BYTES else None


def _local_worker(root: Path) -> Iterator[LocalWorker]:
    project = new_project(root)
    save_project(project)
    worker = write_worker(project, root / "cloud")
    shutil.copy(HERE / "under_test.js", worker.folder)
    config = worker.folder / "wrangler.jsonc"
    text = config.read_text().replace('"main": "index.js"', '"main": "under_test.js"')
    # Pauses are for services; a test has no time for them.
    text = re.sub('"max_batch_timeout": [0-9]+', '"max_batch_timeout": 0', text)
    config.write_text(text.replace('"vars": {', '"vars": {\n    "AGAIN_SECONDS": "0",'))
    with ExitStack() as ending:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if "CLOUDFLARE" in name]:
                patch.delenv(name)
            for name, value in quiet_environment(root).items():
                patch.setenv(name, value)
            patch.setenv("PATH", f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}")
            local = ending.enter_context(
                running(root, load_worker(worker.folder), find_wrangler(), port=0)
            )
        yield local


def paths(count: int, stem: str = "page") -> list[str]:
    """Paths of so many pages."""
    return [f"dist/{stem}-{number:04d}.html" for number in range(count)]


class Cloud:
    """One project on the local Worker: its commands, its ticks, its service."""

    def __init__(self, root: Path, local: LocalWorker, service: Service, ending: ExitStack) -> None:
        api_base = f"{local.address}/cdn-cgi/local/explorer/api"
        namespaces = {"namespace_id": NAMESPACE, "worker_namespace_id": NAMESPACE}
        cloudflare = {**namespaces, "api_base": api_base}
        self.project: Project = init_project(
            root, store="cloudflare", cloudflare=cloudflare
        ).project
        self.root, self.local, self.service = root, local, service
        self._watching = ending.enter_context(self.open())
        self.set()

    def set(self, **variables: Any) -> None:
        """Set vars of the Worker for this project."""
        variables = {"PROCESSOR_URL": self.service.url, **variables}
        with self.open() as store:
            store.put(f"test:{self.project.project_id}", json.dumps(variables), {})

    def open(self) -> Any:
        """The store as another machine sees it: one that remembers no writes of its own."""
        folder = self.root / "elsewhere" / str(time.monotonic_ns())
        elsewhere = replace(self.project, root=folder)
        (folder / ".nimbus").mkdir(parents=True)
        return elsewhere.open_store()

    def run(self, *arguments: str, code: int = 0) -> str:
        """A command, with the exit code that it is to have; what it prints."""
        ran = invoke(self.root, *arguments)
        assert ran.returncode == code, (arguments, ran.returncode, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return ran.stdout

    def document(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code))

    def upload(self, paths: Sequence[str]) -> str:
        """Upload a page for each path; the batch's id."""
        folder = self.project.folder / "maps"
        shutil.rmtree(folder, ignore_errors=True)
        for number, path in enumerate(paths):
            write_map(folder, f"{number:04d}.json", a_map(path))
        with self.project.open_store() as store:
            return str(upload(self.project, store, folder).batch_id)

    def tick(self) -> dict[str, Any]:
        """What the cron trigger does; what the tick says of itself."""
        cron = urllib.parse.quote(self.project.project_id)
        self._get(f"/cdn-cgi/local/scheduled?cron={cron}")
        return dict(json.loads(self.value(f"tick:{self.project.project_id}")))

    def value(self, key: str) -> str:
        """What KV holds now."""
        path = f"/storage/kv/namespaces/{NAMESPACE}/values/{urllib.parse.quote(key, safe='')}"
        return self._get(f"/cdn-cgi/local/explorer/api{path}")

    def write(self, key: str, value: str, metadata: Any) -> None:
        """Write with that metadata as it is, as somebody else would."""
        url = f"{self.local.address}/cdn-cgi/local/explorer/api/storage/kv/namespaces/{NAMESPACE}"
        body = json.dumps([{"key": key, "value": value, "metadata": metadata}]).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/bulk", body, headers, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read())["success"]

    def counted(self) -> dict[str, int]:
        """Operations on KV and Queue since the beginning."""
        return dict(json.loads(self._get(f"/counts?project={self.project.project_id}")))

    def send(self, *bodies: dict[str, Any]) -> None:
        """Put messages into the Queue."""
        url = f"{self.local.address}/send?project={self.project.project_id}"
        request = urllib.request.Request(url, json.dumps(bodies).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.local.address + path, timeout=120) as answer:
            return str(answer.read().decode())

    def counts(self) -> dict[str, int]:
        """Pages of the latest batch by state, without those of none."""
        from nimbus_tasks.batch.status import view_batch

        found = view_batch(self.project, self._watching).tally.counts
        return {state: count for state, count in found.items() if count}

    def until(
        self,
        condition: Callable[[dict[str, int]], bool],
        *,
        ticks: bool = True,
        pause: float = 0.1,
    ) -> None:
        """Wait for counts, ticking meanwhile as cron does."""
        deadline = time.monotonic() + 180
        while not condition(counts := self.counts()):
            assert time.monotonic() < deadline, f"it did not happen in time: {counts}"
            if ticks:
                self.tick()
            time.sleep(pause)

    def until_ended(self) -> None:
        """Tick until no page is open, and once more, for the batch record."""
        self.until(lambda counts: not {"uploaded", "queued", "processing"} & counts.keys())
        self.tick()

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The status records by the path of the page."""
        with self.open() as store:
            keys = [info.key for info in store.scan(f"status:{self.project.project_id}:")]
            found = [json.loads(e.value) for e in store.get_many(keys).values()]
        return {status["path"]: status for status in found}

    def messages(self) -> list[dict[str, str]]:
        """Messages of a tick for all that is in the queue, in its order."""
        with self.open() as store:
            items = [info.key for info in store.scan(f"queue:{self.project.project_id}:")]
        return [{"item": item, "claim": f"claim-{n}"} for n, item in enumerate(items)]

    def in_hand(self, count: int) -> None:
        """Wait until so many pages are claimed, and no more."""
        self.until(lambda counts: counts.get("processing") == count, ticks=False)

    def verified(self) -> list[dict[str, Any]]:
        """What ``verify`` finds from another machine."""
        from nimbus_tasks.batch.verify import verify_batch

        with self.open() as store:
            return [finding.to_json() for finding in verify_batch(self.project, store).findings]


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running_service:
        yield running_service


@pytest.fixture
def cloud(
    tmp_path: Path,
    local_worker: LocalWorker,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    """A project of its own, with a service of its own."""
    # A key may be written at any time here, so that an upload need not wait between two writes.
    monkeypatch.setattr("nimbus_tasks.kv.cloudflare.store.KEY_INTERVAL_SECONDS", 0.0)
    with ExitStack() as ending:
        yield Cloud(tmp_path, local_worker, service, ending)
