"""What a page costs where several machines share the work: messages, and reads and writes of KV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.factories import failing
from tests.fleet.conftest import TOKEN, Fleet
from tests.kv.kv_server import Value
from tests.kv.queue_server import QueueServer


class BillingServer(QueueServer):
    """Counts what KV is billed for: keys read, written and deleted, and listings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.billed: Counter[str] = Counter()
        self._lists = False

    def write(self, changes: Iterable[tuple[str, Value | None]]) -> None:
        changes = list(changes)
        for key, value in changes:
            kind = key.partition(":")[0]
            self.billed[f"write {kind}" if value else "delete"] += 1
        super().write(changes)

    def read(self, key: str) -> Value | None:
        if not self._lists:
            self.billed[f"read {key.partition(':')[0]}"] += 1
        return super().read(key)

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
        with self.lock:
            self.billed["list"] += 1
            self._lists = True
            try:
                return super().page(prefix, after, limit)
            finally:
                self._lists = False


@pytest.fixture
def server() -> Iterator[BillingServer]:
    running = BillingServer(token=TOKEN)
    with running:
        yield running


def test_operations_a_page(fleet: Fleet, server: BillingServer) -> None:
    """Three of the queue. Of KV: two writes to upload; a claim, an outcome, the content with its
    optimization and a log to work on, and a read of each of them before. No item, no deletion."""
    pages = 300
    fleet.upload(pages)
    assert server.billed["write page"] == server.billed["write status"] == pages
    uploaded = made(server)
    assert uploaded["batch"] == 3
    assert server.operations == {"write": pages}
    server.billed.clear()
    server.requests.clear()
    worked = fleet.work("one", "two", processor=failing())
    assert sum(one.done for one in worked) == pages
    assert server.operations == {"write": pages, "read": pages, "delete": pages}
    billed = server.billed
    assert billed["write page"] == billed["write logs"] == pages
    assert pages < billed["write status"] <= 2.2 * pages
    assert billed["read page"] == billed["read logs"] == pages
    assert billed["read status"] <= 2.2 * pages
    assert billed["delete"] == 0
    assert billed["list"] < 60
    print(f"\n{dict(billed)}\n{dict(made(server))}")


def made(server: QueueServer) -> Counter[str]:
    """Requests by the last part of their path."""
    return Counter(path.partition("?")[0].rpartition("/")[2] for _, path in server.requests)
