"""The dashboard of a project on Workers KV: the same, for few requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from nimbus_tasks.core.project import Project, save_project
from tests.dashboard.served import served
from tests.factories import failing, upload, work, write_maps
from tests.kv.kv_server import NAMESPACE, KVServer


@pytest.fixture
def kv() -> Iterator[KVServer]:
    with KVServer() as server:
        yield server


@pytest.fixture
def on_kv(project: Project, kv: KVServer) -> Project:
    """The project on that server; in its latest batch one page of four has failed."""
    there = {"namespace_id": NAMESPACE, "api_base": kv.prefix}
    moved = replace(project, store="cloudflare", cloudflare=there)
    save_project(moved)
    write_maps(moved.folder / "maps", 4)
    with moved.open_store() as store:
        upload(moved, store, moved.folder / "maps")
        work(moved, store, failing("dist/page-002.html"))
    return moved


def test_it_shows_a_batch_and_retries_it_and_tabs_share_the_requests(
    on_kv: Project, kv: KVServer
) -> None:
    with served(on_kv, interval=3600) as dashboard:
        (row,) = dashboard.look()["batches"]
        batch = row["batch_id"]
        asked = len(kv.requests)
        with dashboard.events(batch) as one, dashboard.events(batch) as two:
            first, second = next(one), next(two)
            assert first[1]["document"] == second[1]["document"]
            assert first[1]["document"]["counts"]["failed"] == 1
            assert len(kv.requests) - asked <= 4
            log = dashboard.get(f"batches/{batch}/log?page=dist/page-002.html").json()
            assert log["entries"][-1]["level"] == "error"
            assert len(dashboard.act(f"batches/{batch}/retry").json()["requeued"]) == 1
            for events in (one, two):
                look = next(data["document"] for name, data in events if name == "look")
                assert (look["status"], look["counts"]["queued"]) == ("retrying", 1)


def test_an_ended_batch_costs_a_request_a_look(on_kv: Project, kv: KVServer) -> None:
    with served(on_kv, interval=0.05) as dashboard:
        batch = dashboard.look()["batches"][0]["batch_id"]
        with dashboard.events(batch) as events:
            assert next(events)[0] == "look"
            assert next(events)[0] == "same"
            asked = len(kv.requests)
            assert [next(events)[0] for _ in range(4)] == ["same"] * 4
        assert len(kv.requests) - asked <= 4 + 2  # one more may be under way
