"""The store on Workers KV: the suite of every store, and what its limits ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nimbus_tasks.kv.cloudflare.client import KEY_INTERVAL_SECONDS, KVClient
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.kv.store import Entry, Store
from tests.kv.kv_server import KVServer
from tests.kv.store_suite import Reopen, StoreSuite

Open = Callable[..., CloudflareStore]


class Time:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def opening(prefix: str, namespace: str, folder: Path, time: Time) -> Iterator[Open]:
    """Opens stores on one namespace, of one directory below ``folder`` each; closes them all."""
    with ExitStack() as stack:

        def another(directory: str = "here") -> CloudflareStore:
            client = KVClient(Transport(prefix=prefix, token=None), namespace)
            journal = Journal(folder / directory / "journal.sqlite3", time)
            store = CloudflareStore(client, journal, sleep=time.sleep, clock=time)
            stack.enter_context(store)
            return store

        yield another


@pytest.fixture
def server() -> Iterator[KVServer]:
    with KVServer() as running:
        yield running


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def connect(server: KVServer, tmp_path: Path, time: Time) -> Iterator[Open]:
    """Opens stores: of one directory each, by its name."""
    with opening(server.prefix, server.namespace, tmp_path, time) as another:
        yield another


@pytest.fixture
def store(connect: Open) -> Store:
    return connect()


class TestSuite(StoreSuite):
    """What every store must do."""

    @pytest.fixture
    def reopen(self, connect: Open) -> Reopen:
        """Another handle of the same directory."""
        return connect


class TestSuiteWithoutMetadataInBulkReads(TestSuite):
    """The same on a server that answers as wrangler's local one does."""

    @pytest.fixture
    def server(self) -> Iterator[KVServer]:
        with KVServer(with_metadata=False) as running:
            yield running


def requests(server: KVServer) -> list[str]:
    """What has been asked for since the last call."""
    made = [
        f"{method} {path.partition('?')[0].rpartition('/')[2]}" for method, path in server.requests
    ]
    server.requests.clear()
    return made


# --- requests ---


def test_the_writes_of_a_transaction_go_as_one_request(store: Store, server: KVServer) -> None:
    with store.transaction() as tx:
        tx.put_many(Entry(f"a:{number}", "{}") for number in range(400))
        tx.put_many(Entry(f"b:{number}", "{}") for number in range(400))
        tx.put("a:0", '{"again":1}')
        assert server.requests == []
    assert requests(server) == ["PUT bulk"]
    assert server.data["a:0"][0] == '{"again":1}'


def test_groups_that_do_not_fit_one_request_go_one_after_another(
    store: Store, server: KVServer
) -> None:
    with store.transaction() as tx:
        tx.put_many(Entry(f"page:{number}", "{}") for number in range(1000))
        tx.put_many(Entry(f"status:{number}", "{}") for number in range(1000))
        tx.delete_many(["x"])
    assert requests(server) == ["PUT bulk", "PUT bulk", "POST delete"]


def test_a_listing_is_read_once_in_a_transaction(store: Store, server: KVServer) -> None:
    store.put_many(Entry(f"k:{number}", "{}") for number in range(20))
    requests(server)
    with store.transaction() as tx:
        assert len(list(tx.scan("k:"))) == 20
        tx.delete_many(["k:1"])
        tx.put("k:99", "{}")
        assert [info.key for info in tx.scan("k:")][-1] == "k:99"
        assert len(list(tx.scan("k:"))) == 20
    assert requests(server) == ["GET keys", "PUT bulk", "POST delete"]


def test_what_a_prefetched_listing_lacks_is_not_asked_for(store: Store, server: KVServer) -> None:
    store.put("k:1", "{}")
    store.prefetch("k:")
    requests(server)
    assert store.get_many(f"k:{number}" for number in range(500)).keys() == {"k:1"}
    assert len(requests(server)) <= 1


def test_a_failed_transaction_sends_nothing(store: Store, server: KVServer) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:  # noqa: PT012 - it ends so
        tx.put("k", "{}")
        raise ZeroDivisionError
    assert server.requests == []


# --- one write a second for a key ---


def test_a_key_is_not_written_twice_within_a_second(connect: Open, time: Time) -> None:
    connect().put("k", "1")
    connect().put("other", "1")
    assert time.slept == []
    connect().put("k", "2")
    assert time.slept == [pytest.approx(KEY_INTERVAL_SECONDS)]
    time.now += 5
    connect().put("k", "3")
    assert len(time.slept) == 1
