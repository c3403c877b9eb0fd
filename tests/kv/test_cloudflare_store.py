"""The store on Workers KV: the suite of every store, and what lag and limits ask of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from nimbus_tasks.kv.cloudflare.client import KEY_INTERVAL_SECONDS, KVClient
from nimbus_tasks.kv.cloudflare.journal import KEPT_SECONDS, Journal
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.kv.store import Entry, KeyInfo, Store
from tests.kv.kv_server import KVServer

pytest.register_assert_rewrite("tests.kv.store_suite")

from tests.kv.store_suite import Reopen, StoreSuite, keys  # noqa: E402 - as above

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


def forget(server: KVServer, key: str) -> None:
    """As a place does that the write has not reached yet."""
    with server.lock:
        del server.data[key]
        server._sorted = None


def answer_with(server: KVServer, key: str, value: str, metadata: object) -> None:
    """As a place does that has an older value."""
    with server.lock:
        server.data[key] = (value, metadata)
        server._sorted = None


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


# --- reads that lag ---


def test_a_directory_reads_what_it_wrote_though_the_network_does_not_know_it_yet(
    connect: Open, server: KVServer, time: Time
) -> None:
    connect().put("status:p:a", '{"status":"queued"}', {"status": "queued", "updated": "2026-2"})
    time.now += 30
    forget(server, "status:p:a")
    again = connect()
    assert again.get("status:p:a") is not None
    info = KeyInfo("status:p:a", {"status": "queued", "updated": "2026-2"})
    assert list(again.scan("status:")) == [info]
    assert again.head("status:p:a") == info


def test_an_older_state_is_never_taken_for_a_newer_one(
    connect: Open, server: KVServer, time: Time
) -> None:
    """A retry, and then a look at a place that has the failed page still."""
    connect().put("status:p:a", '{"status":"queued"}', {"status": "queued", "updated": "2026-2"})
    time.now += 30
    answer_with(
        server, "status:p:a", '{"status":"failed"}', {"status": "failed", "updated": "2026-1"}
    )
    again = connect()
    assert keys_and_states(again) == {"status:p:a": "queued"}
    entry = again.get("status:p:a")
    assert entry is not None
    assert entry.value == '{"status":"queued"}'


def keys_and_states(store: Store) -> dict[str, object]:
    return {info.key: (info.metadata or {}).get("status") for info in store.scan("status:")}


def test_a_newer_state_of_somebody_else_is_taken_at_once(
    connect: Open, server: KVServer, time: Time
) -> None:
    connect().put("status:p:a", '{"status":"queued"}', {"status": "queued", "updated": "2026-2"})
    time.now += 30
    value = '{"status":"done","updated":"2026-3"}'
    for metadata in ({"status": "done", "updated": "2026-3"}, None):
        answer_with(server, "status:p:a", value, metadata)
        entry = connect("here").get("status:p:a")
        assert entry is not None
        assert entry.value == value


def test_each_look_asks_for_a_head_anew_and_a_worker_does_not(
    connect: Open, server: KVServer
) -> None:
    watching = connect("there")
    for status in ("uploading", "queued"):
        connect("here").put("batch:p:a", "{}", {"status": status})
        with watching.snapshot() as look:
            assert look.head("batch:p:a") == KeyInfo("batch:p:a", {"status": status})
    requests(server)
    assert watching.head("batch:p:a") is not None  # where it looks each second for a cancel
    assert requests(server) == []


def test_what_was_deleted_here_is_gone_though_a_listing_has_it(
    connect: Open, server: KVServer, time: Time
) -> None:
    store = connect()
    store.put_many(Entry(f"queue:p:{number}", "{}") for number in range(30))
    time.now += 10
    store.delete_many(f"queue:p:{number}" for number in range(30) if number != 7)
    for number in range(30):
        server.data[f"queue:p:{number}"] = ("{}", {"rev": "2026"})
    server._sorted = None
    time.now += 30
    assert keys(
        connect(),
        "queue:",
    ) == ["queue:p:7"]
    assert [info.key for info in connect().scan("queue:", limit=1)] == ["queue:p:7"]
    assert connect().get_many(["queue:p:1", "queue:p:7"]).keys() == {"queue:p:7"}


def test_what_was_written_long_ago_is_what_the_network_says(
    connect: Open, server: KVServer, time: Time
) -> None:
    store = connect()
    store.put("k", "{}")
    time.now += KEPT_SECONDS + 1
    forget(server, "k")
    assert store.get("k") is None
    assert list(store.scan("k")) == []


def test_another_directory_knows_only_what_the_network_says(
    connect: Open, server: KVServer
) -> None:
    connect("here").put("k", "{}")
    forget(server, "k")
    assert connect("there").get("k") is None


def test_a_look_is_never_followed_by_an_older_one(connect: Open, server: KVServer) -> None:
    """A monitor whose requests are answered by now this place and now that one."""
    store = connect()
    states = (("2026-1", "queued"), ("2026-2", "done"), ("2026-1", "queued"), ("2026-3", "queued"))
    seen = []
    for updated, state in states:
        answer_with(server, "status:p:a", "{}", {"status": state, "updated": updated})
        seen.append(keys_and_states(store)["status:p:a"])
    assert seen == ["queued", "done", "done", "queued"]


def test_a_content_that_has_not_arrived_is_waited_for(
    connect: Open, server: KVServer, time: Time
) -> None:
    """A worker right after an upload: the page would fail for the lack of its content."""
    connect().put("page:p:a", '{"extraction":{}}', {"sha256": "x"})
    time.now += 10
    value = server.data["page:p:a"]
    forget(server, "page:p:a")

    def arrives(seconds: float) -> None:
        if seconds > 1:
            answer_with(server, "page:p:a", *value)

    store = connect()
    store._sleep = arrives
    assert store.get("page:p:a") == Entry("page:p:a", '{"extraction":{}}', {"sha256": "x"})


def test_a_damaged_journal_is_begun_anew(connect: Open, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "journal.sqlite3").write_bytes(b"no database at all, but long enough" * 9)
    store = connect()
    store.put("k", "{}")
    assert store.get("k") is not None


def test_a_content_older_than_ours_is_not_taken_for_it(
    connect: Open, server: KVServer, time: Time
) -> None:
    """Edited and sent again: what is processed is the edit, or nothing yet."""
    connect().put("page:p:a", '{"title":"old"}', {"sha256": "1"})
    old = server.data["page:p:a"]
    time.now += 400
    connect().put("page:p:a", '{"title":"new"}', {"sha256": "2"})
    time.now += 10
    answer_with(server, "page:p:a", *old)
    assert connect().get("page:p:a") is None
    assert sum(time.slept) >= 10


def test_a_listing_that_lags_has_the_metadata_of_what_was_sent(
    connect: Open, server: KVServer, time: Time
) -> None:
    """Or an upload of what has changed would send all of it again."""
    connect().put("page:p:a", "{}", {"sha256": "1"})
    time.now += 10
    forget(server, "page:p:a")
    assert list(connect().scan("page:")) == [KeyInfo("page:p:a", {"sha256": "1"})]
    assert connect().head("page:p:a") == KeyInfo("page:p:a", {"sha256": "1"})


def test_what_somebody_else_has_written_since_is_told_by_what_we_replaced(
    connect: Open, server: KVServer, time: Time
) -> None:
    """The queue document, which others write without metadata."""
    for before in (None, ("[1]", None)):
        server.data.clear()
        server._sorted = None
        time.now += 400
        if before is not None:
            answer_with(server, "queue:p", *before)
        with connect().transaction() as tx:
            tx.get("queue:p")
            tx.put("queue:p", "[1,2]", {})
        time.now += 7
        if before is not None:
            answer_with(server, "queue:p", *before)  # a place that our write has not reached
            assert connect().get("queue:p") == Entry("queue:p", "[1,2]", {})
        answer_with(server, "queue:p", "[2]", None)
        assert connect().get("queue:p") == Entry("queue:p", "[2]", None)


def test_after_a_kill_the_journal_is_not_believed_unasked(
    connect: Open, server: KVServer, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the write and the note of it: a cancel that has arrived must be seen."""
    connect().put("status:p:a", '{"status":"queued"}', {"status": "queued", "updated": "2026-1"})
    store = connect()
    time.now += 2
    monkeypatch.setattr(store._journal, "add", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.put(
            "status:p:a", '{"status":"cancelled"}', {"status": "cancelled", "updated": "2026-2"}
        )
    again = connect()
    entry = again.get("status:p:a")
    assert entry is not None
    assert entry.value == '{"status":"cancelled"}'
    head = again.head("status:p:a")
    assert head is not None
    assert head.metadata == {"status": "cancelled", "updated": "2026-2"}
    with again.transaction() as tx:
        assert tx.get("status:p:a") == entry


@pytest.mark.parametrize(
    "spoil",
    [
        'UPDATE keys SET metadata = \'{"at":"x"}\'',
        "UPDATE keys SET metadata = '{\"at\":1800000000}'",
        "UPDATE vals SET value = '{'",
        "UPDATE vals SET value = '5'",
        "DROP TABLE vals",
    ],
)
def test_rubbish_in_the_journal_ends_no_command(connect: Open, tmp_path: Path, spoil: str) -> None:
    store = connect()
    store.put("k", "{}", {"n": 1})
    with closing(sqlite3.connect(tmp_path / "here" / "journal.sqlite3")) as db, db:
        db.execute(spoil)
    for used in (store, connect()):
        assert [info.key for info in used.scan("k")] == ["k"]
        assert used.get("k") == Entry("k", "{}", {"n": 1})
        used.put("k", "{}", {"n": 1})


def test_a_clock_that_was_set_back_freezes_nothing(
    connect: Open, server: KVServer, time: Time
) -> None:
    connect().put("k", "1", {"updated": "2026-1"})
    time.now -= 3600
    answer_with(server, "k", "2", {"updated": "2026-2"})
    assert connect().get("k") == Entry("k", "2", {"updated": "2026-2"})
