"""A dashboard that is really served, in a thread of the test, and its events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import requests

from nimbus_tasks.core.project import Project
from nimbus_tasks.dashboard import serving
from nimbus_tasks.dashboard.app import Dashboard
from nimbus_tasks.dashboard.documents import LookAtBatch
from nimbus_tasks.kv.store import Store

INTERVAL = 0.05


def looks_taken(monkeypatch: pytest.MonkeyPatch) -> list[LookAtBatch]:
    """Gets an item for each look at a batch that a dashboard takes from now on."""
    taken: list[LookAtBatch] = []
    real = LookAtBatch.__call__

    def counted(self: LookAtBatch, store: Store) -> dict[str, Any]:
        taken.append(self)
        return real(self, store)

    monkeypatch.setattr(LookAtBatch, "__call__", counted)
    return taken


class Served:
    """Where it is, and how to ask it what its own page asks."""

    def __init__(self, dashboard: Dashboard, address: serving.Address) -> None:
        self.dashboard = dashboard
        self.address = address
        self.url = address.url
        self.origin = f"http://127.0.0.1:{address.port}"

    def get(self, path: str = "", **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=20, allow_redirects=False)

    def act(self, path: str, body: object = None, **headers: str) -> requests.Response:
        sent = {"Origin": self.origin, "X-Nimbus-Action": "1", **headers}
        data = body if isinstance(body, (bytes, str)) else json.dumps({} if body is None else body)
        return requests.post(self.url + path, data=data, headers=sent, timeout=20)

    @contextmanager
    def events(self, batch: str | None = None) -> Iterator[Iterator[tuple[str, Any]]]:
        """The events, each by its name and data, as they come."""
        address = self.url + "events" + ("" if batch is None else f"?batch={batch}")
        with closing(requests.get(address, stream=True, timeout=20)) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield _parsed(answer)

    def look(self, batch: str | None = None) -> Any:
        """The first look."""
        with self.events(batch) as events:
            return next(data["document"] for name, data in events if name == "look")


def _parsed(answer: requests.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@contextmanager
def served(project: Project, *, interval: float = INTERVAL) -> Iterator[Served]:
    """Serve the project's dashboard as long as the block lasts."""
    dashboard = Dashboard(project, interval)
    listening, address = serving.open_port(project, 0)
    server = serving.make_server(dashboard, address)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield Served(dashboard, address)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
