"""How many requests the tasks take on Cloudflare: they are what it costs, and what it limits.

Counted on a server of the tests' own, with pages of 8 KB. The seed's code takes a request a page or
more for each of these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus_tasks.batch.monitor import watch_batch
from nimbus_tasks.batch.report import write_report
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.keys import last_part, page_id_for, queue_prefix
from nimbus_tasks.core.pages import read_statuses, status_entries
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload.preflight import upload_cost
from tests.factories import a_map, upload
from tests.kv.kv_server import KVServer


@pytest.fixture
def server() -> Iterator[KVServer]:
    with KVServer() as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, server: KVServer) -> Project:
    cloudflare = {"api_base": server.prefix, "namespace_id": server.namespace}
    return Project(
        tmp_path, "proj_0123456789ab", "test", "", store="cloudflare", cloudflare=cloudflare
    )


def page_path(number: int) -> str:
    return f"dist/page-{number:05d}.html"


def write_large_maps(folder: Path, count: int) -> None:
    """Maps of 8 KB, which is what they have as JSON."""
    folder.mkdir(parents=True)
    blocks = [{"selector": f"main > p:nth-child({n})", "text": "word " * 30} for n in range(36)]
    for number in range(count):
        content = a_map(page_path(number), blocks=blocks)
        text = json.dumps(content)
        content["padding"] = "x" * max(0, 8 * 1024 - len(text) - 15)
        (folder / f"{number:05d}.json").write_text(json.dumps(content))


def fail(project: Project, store: Store, count: int) -> None:
    """The first pages have failed, all others are done."""
    with store.transaction() as tx:
        items = [info.key for info in tx.scan(queue_prefix(project.project_id))]
        ids = [last_part(key) for key in items]
        statuses = read_statuses(tx, project.project_id, ids)
        failed = {page_id_for(project.project_id, page_path(number)) for number in range(count)}
        for page_id, status in statuses.items():
            ended = replace(
                status,
                state="failed" if page_id in failed else "done",
                updated=now_iso(),
                started=status.updated,
                completed=now_iso(),
                error="no" if page_id in failed else None,
                code="broken" if page_id in failed else None,
            )
            statuses[page_id] = ended
        tx.put_many(status_entries(project.project_id, statuses))
        tx.delete_many(items)


class Requests:
    """Opens the project's store for one command, and counts what it asks for."""

    def __init__(self, project: Project, server: KVServer) -> None:
        self._project, self._server = project, server

    def __enter__(self) -> Store:
        self._server.requests.clear()
        self._opened = self._project.open_store()
        return self._opened.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._opened.__exit__(None, None, None)
        made = Counter(
            path.partition("?")[0].rpartition("/")[2] for _, path in self._server.requests
        )
        self.made = dict(made)
        self.count = len(self._server.requests)


@pytest.mark.parametrize(
    ("pages", "most"),
    [
        (1000, {"upload": 10, "status": 3, "tick": 3, "retry": 8, "report": 3}),
        (10_000, {"upload": 64, "status": 12, "tick": 12, "retry": 20, "report": 12}),
    ],
)
def test_requests(
    project: Project, server: KVServer, tmp_path: Path, pages: int, most: dict[str, int]
) -> None:
    write_large_maps(tmp_path / "maps", pages)
    assert (tmp_path / "maps" / "00007.json").stat().st_size >= 8 * 1024
    counted = {}
    with (command := Requests(project, server)) as store:
        sent = upload(project, store, tmp_path / "maps")
        assert sent.uploaded == pages
    counted["upload"] = command
    foreseen = upload_cost(pages, sent.bytes)
    assert command.count <= foreseen.requests <= command.count + 3 + pages // 1000
    assert foreseen.writes == 3 * pages + 2
    with project.open_store() as store:
        fail(project, store, 100)
    # Another directory, which has no memory of what was written here.
    project = replace(project, root=tmp_path / "elsewhere")
    with (command := Requests(project, server)) as store:
        assert view_batch(project, store).tally.counts["failed"] == 100
    counted["status"] = command
    with (command := Requests(project, server)) as store:
        write_report(project, store)
    counted["report"] = command
    with (command := Requests(project, server)) as store:
        assert len(retry_pages(project, store).requeued) == 100
    counted["retry"] = command
    with project.open_store() as store:
        looks = watch_batch(project, store, interval=0, sleep=lambda _: None)
        next(looks)
        server.requests.clear()
        next(looks)
        assert len(server.requests) <= most["tick"]
    made = {name: (one.count, one.made) for name, one in counted.items()}
    assert all(one.count <= most[name] for name, one in counted.items()), made


def test_records_that_somebody_else_wrote_are_read_many_at_a_time(
    project: Project, server: KVServer, tmp_path: Path
) -> None:
    """A Worker's writes leave no metadata: their values are read, a hundred a request."""
    write_large_maps(tmp_path / "maps", 1000)
    with project.open_store() as store:
        upload(project, store, tmp_path / "maps")
    with server.lock:
        for key, (value, _) in list(server.data.items()):
            if key.startswith(("status:", "logs:")):
                server.data[key] = (value, None)
        server._sorted = None
    elsewhere = replace(project, root=tmp_path / "elsewhere")
    with (command := Requests(elsewhere, server)) as store:
        assert view_batch(elsewhere, store).tally.counts["queued"] == 1000
    assert command.count <= 2 + 10, command.made
