"""``nimbus.cloud.dev`` that is ended in the middle of a batch, and started again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.cloud.dev import LocalWorker, running
from nimbus_tasks.cloud.init import write_worker
from nimbus_tasks.cloud.wrangler import find_wrangler, load_worker
from nimbus_tasks.core.project import Project, load_project, new_project, save_project
from tests.cloud.service import Service
from tests.factories import upload, write_maps
from tests.wrangler.installed import MODULES, need_wrangler, quiet_environment


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_wrangler()
    for name, value in quiet_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("nimbus_tasks.kv.cloudflare.store.KEY_INTERVAL_SECONDS", 0.0)


def test_what_it_had_in_hand_and_in_its_queue_goes_on_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Queue is in wrangler's memory; leases and what a tick has sent, in the KV on disk."""
    save_project(new_project(tmp_path))
    write_maps(tmp_path / "maps", 12)
    with Service() as service:
        worker = load_worker(
            write_worker(load_project(tmp_path), tmp_path / "cloud", url=service.url).folder
        )
        monkeypatch.setenv("NIMBUS_CONFIG", str(worker.folder / "dev.json"))
        service.gate.clear()
        with running(tmp_path, worker, find_wrangler(), port=0) as local:
            with load_project(tmp_path).open_store() as store:
                upload(load_project(tmp_path), store, tmp_path / "maps")
            until(local, lambda counts: counts["processing"] > 0)
        service.gate.set()
        with running(tmp_path, worker, find_wrangler(), port=0) as local:
            until(local, lambda counts: counts["done"] == 12)
    assert len(service.asked) == 12


def until(local: LocalWorker, condition: Callable[[dict[str, int]], bool]) -> None:
    """Tick until it is so."""
    project: Project = load_project(local.config.parent.parent)
    deadline = time.monotonic() + 60
    while True:
        local.tick()
        with project.open_store() as store:
            counts = view_batch(project, store).tally.counts
        if condition(counts):
            return
        assert time.monotonic() < deadline, counts
        time.sleep(0.2)
