"""The queue in messages: a store like any other, with messages in the place of items."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nimbus_tasks.core.errors import StoreError, StoreUnreachableError
from nimbus_tasks.core.keys import queue_prefix, status_key
from nimbus_tasks.core.queue_messages import MessageQueueStore
from nimbus_tasks.core.records import PageStatus, queue_entry
from nimbus_tasks.kv.cloudflare.queues import QueueClient
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, Store
from tests.fleet.conftest import TOKEN
from tests.kv.queue_server import QueueServer
from tests.kv.store_suite import IsolatedStoreSuite, Reopen

PROJECT, BATCH = "proj_0123456789ab", "batch_20261124_081302"
MOMENT = "2026-11-24T08:13:02.000000Z"


@pytest.fixture(scope="module")
def server() -> Iterator[QueueServer]:
    running = QueueServer(token=TOKEN)
    with running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: QueueServer) -> None:
    server.messages.clear()
    server.operations.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.sqlite3"


def opened(server: QueueServer, path: Path, *, create: bool = False) -> MessageQueueStore:
    queue = QueueClient(Transport(prefix=server.prefix, token=TOKEN), server.queue)
    return MessageQueueStore(SqliteStore(path, create=create), queue, PROJECT, hold_seconds=30)


@pytest.fixture
def store(server: QueueServer, path: Path) -> Iterator[Store]:
    with opened(server, path, create=True) as made:
        yield made


class TestSuite(IsolatedStoreSuite):
    """Whatever is no queue item is the real store's affair."""

    @pytest.fixture
    def reopen(self, server: QueueServer, path: Path, store: Store) -> Iterator[Reopen]:
        handles: list[Store] = []

        def another() -> Store:
            handles.append(opened(server, path))
            return handles[-1]

        yield another
        for handle in handles:
            with suppress(StoreError, OSError):
                handle.close()


def queued(page_id: str, priority: int = 5) -> tuple[Entry, Entry]:
    """The status and the item of a page."""
    status = PageStatus("queued", BATCH, MOMENT, attempts=1, priority=priority, queued_at=MOMENT)
    return status.entry(status_key(PROJECT, page_id)), queue_entry(PROJECT, page_id, status)


def state(page_id: str, name: str) -> Entry:
    return PageStatus(name, BATCH, MOMENT).entry(status_key(PROJECT, page_id))


def first(store: Store, limit: int) -> list[str]:
    with store.transaction() as tx:
        return [info.key for info in tx.scan(queue_prefix(PROJECT), limit=limit)]


def test_an_item_goes_out_as_a_message_and_comes_back_as_it_was(
    store: Store, server: QueueServer
) -> None:
    status, item = queued("page_1", 8)
    store.put_many([status, item])
    [message] = server.messages
    assert message.body == {
        "project_id": PROJECT,
        "page_id": "page_1",
        "batch_id": BATCH,
        "priority": 8,
        "queued_at": MOMENT,
        "attempt": 2,
    }
    assert list(store.scan(queue_prefix(PROJECT))) == []  # a look takes nothing
    assert first(store, 1) == [item.key]
    assert store.get(item.key) == item
    assert store.head(item.key) is not None


def test_nothing_is_published_of_a_transaction_that_does_not_come_to_its_end(
    store: Store, server: QueueServer
) -> None:
    def cut_off() -> None:
        with store.transaction() as tx:
            tx.put_many(queued("page_1"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off()
    assert server.messages == []
    assert store.get(status_key(PROJECT, "page_1")) is None


@pytest.mark.parametrize(
    ("written", "left", "waiting"),
    [
        ("processing", 1, 0),  # held
        ("done", 0, 0),  # acknowledged
        ("cancelled", 0, 0),
        (None, 0, 0),  # its item was passed over: there is nothing to work on
    ],
)
def test_the_status_says_what_becomes_of_a_message(
    store: Store, server: QueueServer, written: str | None, left: int, waiting: int
) -> None:
    status, item = queued("page_1")
    store.put_many([status, item])
    assert first(store, 1) == [item.key]
    with store.transaction() as tx:
        tx.delete_many([item.key])
        if written:
            tx.put_many([state("page_1", written)])
    assert (len(server.messages), len(first(store, 5))) == (left, waiting)
    store.put_many([state("page_1", "done")])
    assert server.messages == []


def test_a_page_that_goes_back_to_its_place_gives_its_message_back(
    store: Store, server: QueueServer
) -> None:
    status, item = queued("page_1")
    store.put_many([status, item])
    first(store, 1)
    with store.transaction() as tx:
        tx.delete_many([item.key])
        tx.put_many([state("page_1", "processing")])
    store.put_many([status, item])
    assert server.operations == {"write": 1, "read": 1}
    assert first(store, 1) == [item.key]


def test_what_nobody_claimed_is_given_back_when_the_store_is_closed(
    server: QueueServer, path: Path
) -> None:
    with opened(server, path, create=True) as store:
        store.put_many([entry for n in range(3) for entry in queued(f"page_{n}")])
        assert len(first(store, 5)) == 3
    with opened(server, path) as store:
        assert len(first(store, 5)) == 3


def test_those_in_hand_come_in_the_order_of_their_priority(
    store: Store, server: QueueServer
) -> None:
    store.put_many([entry for n in range(1, 11) for entry in queued(f"page_{n}", n)])
    items = first(store, 10)
    assert [key.rpartition("_")[2] for key in items] == [str(n) for n in range(10, 0, -1)]


def test_an_outage_of_the_queue_loses_no_acknowledgement(
    store: Store, server: QueueServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, item = queued("page_1")
    store.put_many([status, item])
    first(store, 1)

    def fails(*_: object) -> None:
        raise StoreUnreachableError("no way there")

    with monkeypatch.context() as patch:
        patch.setattr(QueueClient, "settle", fails)
        with store.transaction() as tx:
            tx.delete_many([item.key])
        assert len(server.messages) == 1
        patch.setattr(QueueClient, "publish", fails)
        with pytest.raises(StoreUnreachableError):
            store.put_many(queued("page_2"))
    store.put("x", "1")
    assert [message.body["page_id"] for message in server.messages] == ["page_2"]


def test_between_two_pulls_nothing_changes_of_what_may_be_hidden(
    server: QueueServer, path: Path
) -> None:
    """A worker that puts no page back must not find, a moment later, that there is none to wait
    for."""
    now = [0.0]
    inner = SqliteStore(path, create=True)
    inner.lag_seconds = 10.0
    queue = QueueClient(Transport(prefix=server.prefix, token=TOKEN), server.queue)
    made = MessageQueueStore(inner, queue, PROJECT, hold_seconds=30, clock=lambda: now[0])
    with made as store:
        assert first(store, 5) == []
        assert store.may_hide(1)
        now[0] = 31.0
        assert store.may_hide(1)
        assert first(store, 5) == []
        assert not store.may_hide(1)
        store.put_many(queued("page_1"))
        assert store.may_hide(1)


def test_a_claim_that_was_not_written_leaves_its_message_in_hand(
    store: Store, server: QueueServer
) -> None:
    """It need not be waited for until its lease at the queue ends."""
    status, item = queued("page_1")
    store.put_many([status, item])
    assert first(store, 1) == [item.key]

    def cut_off() -> None:
        with store.transaction() as tx:
            tx.delete_many([item.key])
            tx.put_many([state("page_1", "processing")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off()
    assert first(store, 1) == [item.key]
    assert server.operations == {"write": 1, "read": 1}


def claim(store: Store, page_id: str, *items: Entry) -> None:
    with store.transaction() as tx:
        tx.delete_many([item.key for item in items])
        tx.put_many([state(page_id, "processing")])


def test_all_messages_of_a_page_are_acknowledged(
    store: Store, server: QueueServer, path: Path
) -> None:
    """One that was published twice, and those of two places."""
    (status, item), (_, other) = queued("page_1"), queued("page_1", 8)
    with opened(server, path) as elsewhere:
        elsewhere.put_many([status, item])
        elsewhere.put_many([status, item, other])
    assert len(server.messages) == 3
    assert first(store, 5) == [other.key, item.key]
    claim(store, "page_1", item, other)
    assert len(server.messages) == 3
    store.put_many([state("page_1", "done")])
    assert server.messages == []


def test_a_message_whose_claim_came_to_nothing_is_kept_from_nobody(
    server: QueueServer, path: Path
) -> None:
    """Another has its page: no outcome of this one was written. At its end it is given back."""
    status, item = queued("page_1")
    with opened(server, path, create=True) as store:
        store.put_many([status, item])
        assert first(store, 1) == [item.key]
        claim(store, "page_1", item)
    [message] = server.messages
    assert message.visible_at <= time.monotonic()


def test_the_messages_of_two_claims_of_one_page_are_acknowledged(
    store: Store, server: QueueServer
) -> None:
    status, item = queued("page_1")
    store.put_many([status, item])
    assert first(store, 1) == [item.key]
    claim(store, "page_1", item)
    server.publish(server.messages[0].body)  # that claim lapses, and somebody publishes it anew
    assert first(store, 1) == [item.key]
    claim(store, "page_1", item)
    store.put_many([state("page_1", "done")])
    assert server.messages == []


def test_where_one_cannot_be_claimed_no_others_are_kept_from_other_workers(
    store: Store, server: QueueServer
) -> None:
    for number in range(6):
        store.put_many(queued(f"page_{number}"))
    with store.transaction() as tx:
        seen = [len(list(tx.scan(f"queue:{PROJECT}:", limit=limit))) for limit in (1, 2, 3)]
    assert (seen, server.operations["read"]) == ([1, 1, 1], 1)


def test_what_others_may_have_by_now_is_in_hand_no_more(server: QueueServer, path: Path) -> None:
    now = [0.0]
    queue = QueueClient(Transport(prefix=server.prefix, token=TOKEN), server.queue)
    inner = SqliteStore(path, create=True)
    with MessageQueueStore(inner, queue, PROJECT, hold_seconds=30, clock=lambda: now[0]) as store:
        status, item = queued("page_1")
        store.put_many([status, item])
        assert first(store, 1) == [item.key]
        now[0] = 29.0
        assert first(store, 1) == [item.key]
        now[0] = 31.0
        assert first(store, 1) == []


def test_a_queue_that_refuses_is_left_alone_while_pages_are_at_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, item = queued("page_1")
    store.put_many([status, item])
    first(store, 1)
    claim(store, "page_1", item)
    asked = []

    def refuses(*_: object) -> None:
        asked.append(1)
        raise StoreError("no")

    monkeypatch.setattr(QueueClient, "pull", refuses)
    assert [first(store, 1), first(store, 1), len(asked)] == [[], [], 1]
    store.put_many([state("page_1", "done")])
    with pytest.raises(StoreError):
        first(store, 1)
