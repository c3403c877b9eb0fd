"""The store on Workers KV where reads lag behind writes: no state is followed by an older one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nimbus_tasks.kv.cloudflare.journal import KEPT_SECONDS
from nimbus_tasks.kv.store import Entry, KeyInfo, Store
from tests.kv.kv_server import KVServer
from tests.kv.store_suite import keys
from tests.kv.test_cloudflare_store import Open, Time, connect, requests, server, store, time

__all__ = ["connect", "server", "store", "time"]


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
