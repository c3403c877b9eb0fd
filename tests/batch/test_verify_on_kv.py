"""Verify on Workers KV, while somebody else works on the pages: no fault is seen where none is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.clock import iso_after
from nimbus_tasks.core.keys import batch_key
from nimbus_tasks.core.project import Project, save_project
from tests.factories import upload, work, write_maps
from tests.kv.kv_server import NAMESPACE, KVServer

Places = tuple[Project, Project]


@pytest.fixture
def places(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Two directories of one project on KV, whose pages a Worker processes: the second stands for
    that Worker."""
    with KVServer() as server:
        there = {
            "namespace_id": NAMESPACE,
            "worker_namespace_id": NAMESPACE,
            "api_base": server.prefix,
        }
        here = replace(project, store="cloudflare", cloudflare=there)
        other = replace(here, root=Path(tmp_path_factory.mktemp("other")))
        for one in (here, other):
            save_project(one)
        write_maps(here.folder / "maps", 4)
        yield here, other


def findings(project: Project) -> list[str]:
    with project.open_store() as store:
        return [finding.kind for finding in verify_batch(project, store).findings]


def pass_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what verify itself takes for new."""
    later = "nimbus_tasks.batch.verify.checks.iso_after"
    monkeypatch.setattr(later, lambda seconds: iso_after(seconds + 121))


def test_what_somebody_else_took_out_of_the_queue_is_no_stray_item(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = places
    with here.open_store() as store:
        upload(here, store, here.folder / "maps")
    with other.open_store() as store:
        work(other, store)
    pass_two_minutes(monkeypatch)
    assert findings(here) == []


def test_the_record_of_a_batch_that_has_just_ended_is_left_a_while(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = places
    with here.open_store() as store:
        batch_id = upload(here, store, here.folder / "maps").batch_id
    assert batch_id is not None
    with other.open_store() as store:
        before = store.get(batch_key(other.project_id, batch_id))
        assert before is not None
        work(other, store)
        time.sleep(1)  # a key can be written once a second
        store.put_many([before])  # a Worker writes it at its next tick
        assert [f.kind for f in verify_batch(other, store).findings] == []
        pass_two_minutes(monkeypatch)
        assert [f.kind for f in verify_batch(other, store).findings] == ["drift"]
