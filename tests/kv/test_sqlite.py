"""The embedded store: the suite of every store, and what is SQLite's own."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv import sqlite
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, KeyInfo, Store
from tests.kv.store_suite import BrokenOffError, IsolatedStoreSuite, Reopen, fill, keys

#: Fresh processes, as commands are; a fork would inherit the lock and the connection.
SPAWN = multiprocessing.get_context("spawn")
#: Much longer than anything here takes, so that a slow machine fails no test.
PATIENCE = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "kv.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store."""
    with SqliteStore(path, create=True) as opened:
        yield opened


@pytest.fixture
def reopen(path: Path, store: Store) -> Iterator[Reopen]:
    """Opens more handles on the store, closed at the end unless the test has closed them."""
    handles: list[SqliteStore] = []

    def another() -> Store:
        handles.append(SqliteStore(path))
        return handles[-1]

    yield another
    for handle in handles:
        with suppress(StoreError, OSError):
            handle.close()


class TestSqliteStore(IsolatedStoreSuite):
    """The suite, on a file."""

    # Faults of the source, to be taken away with them; the suite's tests stay as they are.

    def test_an_empty_prefix_lists_everything(self, store: Store) -> None:
        super().test_an_empty_prefix_lists_everything(store)

    def test_a_prefix_may_end_in_any_character(self, store: Store) -> None:
        super().test_a_prefix_may_end_in_any_character(store)

    def test_the_length_of_a_key_is_counted_in_bytes(self, store: Store) -> None:
        super().test_the_length_of_a_key_is_counted_in_bytes(store)

    def test_text_that_is_no_text_is_refused(self, store: Store) -> None:
        super().test_text_that_is_no_text_is_refused(store)


# --- against a model ---

KEYS = st.text(alphabet="ab:;é\uff21😀", min_size=1, max_size=4)
METADATA = st.none() | st.dictionaries(st.sampled_from("xy"), st.integers(0, 9), max_size=2)
CHANGES = st.lists(
    st.tuples(st.just("put"), st.builds(Entry, KEYS, st.text(max_size=4), METADATA))
    | st.tuples(st.just("delete"), KEYS),
    max_size=30,
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CHANGES, st.lists(KEYS, max_size=4), st.none() | st.integers(0, 5))
def test_after_any_changes_the_store_holds_what_a_dict_would(
    store: Store, changes: list[tuple[str, Any]], prefixes: list[str], limit: int | None
) -> None:
    model: dict[str, Entry] = {}
    with suppress(BrokenOffError), store.transaction():
        for change, what in changes:
            if change == "put":
                store.put_many([what])
                model[what.key] = what
            else:
                store.delete_many([what])
                model.pop(what, None)
        assert store.get_many({*model, "nobody"}) == model
        for prefix in prefixes:
            expected = sorted(
                (KeyInfo(key, model[key].metadata) for key in model if key.startswith(prefix)),
                key=lambda info: info.key.encode(),
            )
            assert list(store.scan(prefix, limit=limit)) == expected[:limit]
            assert store.head(prefix) == (
                KeyInfo(prefix, model[prefix].metadata) if prefix in model else None
            )
        raise BrokenOffError


# --- several processes ---


def increment(path: Path, times: int) -> None:
    """In another process: add one to a counter, so many times."""
    with SqliteStore(path) as store:
        for _ in range(times):
            with store.transaction() as tx:
                entry = tx.get("counter")
                tx.put("counter", str(int(entry.value if entry else 0) + 1))


def create_and_put(path: Path, name: str, ready: Any) -> None:
    """In another process: make the store, all at the same moment, and write a key."""
    ready.wait(PATIENCE)
    with SqliteStore(path, create=True) as store:
        store.put(name, "1")


def die_in_a_transaction(path: Path) -> None:
    """In another process: write, and be gone before the end."""
    with SqliteStore(path).transaction() as tx:
        tx.put("a", "2")
        tx.delete_many(["b"])
        fill(tx, *(f"many:{number}" for number in range(5_000)))
        os._exit(9)


def hang_in_a_transaction(path: Path, written: Event) -> None:
    """In another process: write, say so, and wait to be killed."""
    with SqliteStore(path).transaction() as tx:
        tx.put("a", "2")
        tx.delete_many(["b"])
        fill(tx, *(f"many:{number}" for number in range(5_000)))
        written.set()
        SPAWN.Event().wait(PATIENCE)


def commit_and_hang(path: Path, written: Event) -> None:
    """In another process: write, say so, and wait to be killed before closing."""
    store = SqliteStore(path)
    store.put("a", "2")
    written.set()
    SPAWN.Event().wait(PATIENCE)


def run_together(target: Callable[..., None], *arguments: tuple[Any, ...]) -> list[int | None]:
    """Run a function in a process for each of the arguments, at once; their exit codes."""
    processes = [SPAWN.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


@contextmanager
def killed_when_ready(target: Callable[..., None], path: Path) -> Iterator[None]:
    """Within the block a process hangs in ``target``; after it, it has been killed."""
    ready = SPAWN.Event()
    process = SPAWN.Process(target=target, args=(path, ready))
    process.start()
    try:
        assert ready.wait(PATIENCE)
        yield
    finally:
        process.kill()
        process.join(PATIENCE)
    assert process.exitcode != 0


def test_four_processes_increment_a_counter_and_none_is_lost(store: Store, path: Path) -> None:
    exits = run_together(increment, *[(path, 50)] * 4)

    assert exits == [0, 0, 0, 0]
    assert store.get("counter") == Entry("counter", "200")


def test_several_processes_may_make_the_store_at_once(path: Path) -> None:
    together = SPAWN.Barrier(3)

    exits = run_together(create_and_put, *((path, name, together) for name in "abc"))

    assert exits == [0, 0, 0]
    with SqliteStore(path) as store:
        assert store.get_many("abc").keys() == {"a", "b", "c"}


def test_a_process_that_dies_in_a_transaction_leaves_the_old_state(
    store: Store, path: Path
) -> None:
    store.put_many([Entry("a", "1", {"n": 1}), Entry("b", "1")])

    assert run_together(die_in_a_transaction, (path,)) == [9]

    assert store.get("a") == Entry("a", "1", {"n": 1})
    assert store.get("b") == Entry("b", "1")
    assert keys(store, "many:") == []


def test_a_process_that_is_killed_in_a_transaction_leaves_the_old_state_and_no_lock(
    store: Store, path: Path
) -> None:
    store.put_many([Entry("a", "1", {"n": 1}), Entry("b", "1")])

    with killed_when_ready(hang_in_a_transaction, path):
        assert store.get("a") == Entry("a", "1", {"n": 1})  # who only reads is not held up

    assert store.get_many(["a", "b"]) == {"a": Entry("a", "1", {"n": 1}), "b": Entry("b", "1")}
    store.put("a", "3")
    with SqliteStore(path) as other:
        assert other.get("a") == Entry("a", "3")
        assert keys(other, "many:") == []


def test_what_was_committed_survives_the_kill_of_the_only_process(path: Path) -> None:
    SqliteStore(path, create=True).close()

    with killed_when_ready(commit_and_hang, path):
        pass

    with SqliteStore(path) as store:
        assert store.get("a") == Entry("a", "2")


def test_a_writer_that_is_waited_for_in_vain_is_a_store_error(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_SECONDS", 0.05)
    lock = FileLock(path.with_name("kv.sqlite3.lock"))
    assert lock.acquire(0)

    with pytest.raises(StoreError, match="another process") as error:
        store.put("a", "1")
    assert error.value.advice is not None
    assert store.get("a") is None

    lock.close()
    store.put("a", "1")
    assert store.get("a") is not None


def test_not_even_another_program_writes_between_a_transactions_reads_and_its_writes(
    store: Store, path: Path
) -> None:
    with closing(sqlite3.connect(path, timeout=0)) as other, store.transaction() as tx:
        assert tx.get("a") is None
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO keys VALUES ('a', NULL)")
        tx.put("a", "1")

    assert store.get("a") == Entry("a", "1")


# --- the file ---


def test_a_store_that_was_closed_is_one_file_and_its_lock(path: Path) -> None:
    with SqliteStore(path, create=True) as store:
        fill(store, "a")

    names = sorted(child.name for child in path.parent.iterdir())
    assert names == ["kv.sqlite3", "kv.sqlite3.lock"]


def test_of_a_deleted_key_nothing_is_left_in_the_file(store: Store, path: Path) -> None:
    fill(store, "a", "b")
    store.delete_many(["a", "b"])

    with closing(sqlite3.connect(path)) as db:
        for table in ("keys", "vals"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_store_that_is_not_there_is_not_made_unasked(path: Path) -> None:
    with pytest.raises(StoreError, match="no store") as error:
        SqliteStore(path)

    assert str(path) in error.value.message
    assert error.value.exit_code == 5
    assert error.value.advice is not None
    assert "nimbus.upload" in error.value.advice
    assert list(path.parent.iterdir()) == []


def test_making_a_store_that_is_there_opens_it(store: Store, path: Path) -> None:
    fill(store, "a")

    with SqliteStore(path, create=True) as other:
        assert keys(other, "a") == ["a"]


def test_an_empty_file_is_a_store_whose_making_was_cut_off(path: Path) -> None:
    path.touch()

    with SqliteStore(path) as store:
        fill(store, "a")
        assert keys(store, "a") == ["a"]


def refused(path: Path) -> StoreError:
    """The error of opening a file, which is left as it was."""
    before = path.read_bytes()
    with pytest.raises(StoreError) as error:
        SqliteStore(path, create=True)
    assert path.read_bytes() == before
    assert str(path) in error.value.message
    assert error.value.exit_code == 5
    assert error.value.advice is not None
    assert error.value.__cause__ is None or isinstance(error.value.__cause__, sqlite3.Error)
    return error.value


@pytest.mark.parametrize("content", [b"not a database\n" * 1000, b"\x00" * 4096, b"{}"])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)

    assert "damaged" in refused(path).message


def make_foreign(path: Path, *pragmas: str) -> None:
    """An SQLite file of another program."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text TEXT)")
        db.execute("INSERT INTO notes VALUES ('precious')")
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}")
        db.commit()


@pytest.mark.parametrize(
    "pragmas", [(), ("application_id = 7",), ("user_version = 1",), ("user_version = 99",)]
)
def test_an_sqlite_file_of_another_program_is_refused(path: Path, pragmas: tuple[str, ...]) -> None:
    make_foreign(path, *pragmas)

    with pytest.raises(StoreError, match="another program") as error:
        SqliteStore(path, create=True)
    assert str(path) in error.value.message
    assert error.value.exit_code == 5
    assert error.value.advice is not None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT text FROM notes").fetchall() == [("precious",)]
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


@pytest.mark.parametrize("pragmas", [("user_version = 1",), ("user_version = 99",)])
def test_an_sqlite_file_of_another_program_is_left_as_it_was(
    path: Path, pragmas: tuple[str, ...]
) -> None:
    make_foreign(path, *pragmas)

    refused(path)


@pytest.mark.parametrize("pragmas", [(), ("application_id = 7",)])
def test_an_sqlite_file_of_another_program_without_a_version_is_left_as_it_was(
    path: Path, pragmas: tuple[str, ...]
) -> None:
    make_foreign(path, *pragmas)

    refused(path)


def test_a_store_of_a_newer_version_is_refused_and_left_as_it_was(path: Path) -> None:
    SqliteStore(path, create=True).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")

    error = refused(path)

    assert "newer" in error.message
    assert "pip install --upgrade nimbus-tasks" in str(error.advice)


def test_a_store_that_is_damaged_in_the_middle_is_a_store_error(path: Path) -> None:
    with SqliteStore(path, create=True) as store:
        fill(store, *(f"key:{number:05d}" for number in range(2_000)))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))

    with SqliteStore(path) as store, pytest.raises(StoreError, match="damaged") as error:
        keys(store, "key:")
    assert str(path) in error.value.message


def test_a_folder_in_the_place_of_the_store_is_a_store_error(path: Path) -> None:
    path.mkdir()

    with pytest.raises(StoreError, match="cannot open") as error:
        SqliteStore(path, create=True)
    assert str(path) in error.value.message
    assert error.value.exit_code == 5
    assert error.value.advice is not None


def test_a_folder_in_the_place_of_the_lock_is_a_store_error(path: Path) -> None:
    path.with_name("kv.sqlite3.lock").mkdir()

    with pytest.raises(StoreError, match=r"kv\.sqlite3") as error:
        SqliteStore(path, create=True)
    assert error.value.exit_code == 5


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"kv\.sqlite3"):
        SqliteStore(tmp_path / "nowhere" / "kv.sqlite3", create=True)


def test_a_full_disk_is_a_store_error_and_nothing_of_the_step_is_kept(
    store: SqliteStore, reopen: Reopen
) -> None:
    fill(store, "a")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")

    with pytest.raises(StoreError, match="no space left") as error:
        store.put_many([Entry("b", "1"), Entry("big", "x" * 1_000_000)])
    assert error.value.exit_code == 5
    assert "run the command again" in str(error.value.advice)
    for handle in (store, reopen()):
        assert handle.get_many(["a", "b", "big"]).keys() == {"a"}
    store.put("small", "1")
    assert store.get("small") is not None


# --- one connection ---


def test_a_write_in_a_snapshot_is_refused_and_the_store_stays_usable(store: Store) -> None:
    with store.snapshot() as reading:
        assert reading.get("a") is None
        with pytest.raises(StoreError):
            store.put("a", "1")

    store.put("a", "2")
    assert store.get("a") == Entry("a", "2")


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN"])
def test_ctrl_c_as_a_transaction_begins_leaves_none_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    class Interrupted(sqlite3.Connection):
        """Ctrl-C comes while SQLite begins, and is told when it has."""

        is_due = False

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            done = super().execute(sql, *parameters)
            if sql == begin and Interrupted.is_due:
                Interrupted.is_due = False
                raise KeyboardInterrupt
            return done

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Interrupted))
    with SqliteStore(path, create=True) as store:
        Interrupted.is_due = True
        opening = store.transaction if begin == "BEGIN IMMEDIATE" else store.snapshot
        with pytest.raises(KeyboardInterrupt), opening():
            pass
        store.put_many([Entry("a", "1")])
        with store.snapshot() as reading:
            assert reading.get_values(["a"]) == {"a": "1"}


def test_a_failed_opening_holds_nothing_that_a_later_one_needs(path: Path) -> None:
    path.write_bytes(b"not a database\n" * 1000)
    refused(path)
    path.unlink()

    with SqliteStore(path, create=True) as store:
        fill(store, "a")


def test_a_store_may_be_closed_before_the_end_of_its_block(path: Path) -> None:
    with SqliteStore(path, create=True) as store:
        store.close()


@pytest.mark.parametrize("spoiled", ["[1]", "5", '"text"', "true", "{broken", "{}},{", "[" * 5000])
def test_metadata_that_is_no_object_counts_as_none(store: Store, path: Path, spoiled: str) -> None:
    store.put_many([Entry("k:a", "1", {"n": 1}), Entry("k:b", "2", {"n": 2})])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE keys SET metadata = ? WHERE key = 'k:a'", (spoiled,))

    assert list(store.scan("k:")) == [KeyInfo("k:a", None), KeyInfo("k:b", {"n": 2})]
    assert store.get("k:a") == Entry("k:a", "1", None)


def test_keys_without_values_are_a_fault(store: Store, path: Path) -> None:
    store.put_many([Entry("k:a", "1"), Entry("k:b", "2")])
    assert store.faults() == []
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM vals WHERE key = 'k:a'")

    assert any("values of 1 keys" in fault for fault in store.faults())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_is_deleted_while_it_is_used_is_noticed(
    store: Store, path: Path, tmp_path: Path, replaced: bool
) -> None:
    store.put("a", "1")
    if replaced:
        other = tmp_path / "other.sqlite3"
        SqliteStore(other, create=True).close()
        other.replace(path)
    else:
        path.unlink()
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.put("b", "2")
    store.close()
    with SqliteStore(path, create=True) as anew:
        anew.put("b", "2")
        assert anew.get("b") is not None


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_every_commit_is_synced_unless_the_store_need_not_be_durable(
    path: Path, durable: bool, level: int
) -> None:
    with closing(SqliteStore(path, create=True, durable=durable)) as opened:
        assert opened._db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_metadata_that_is_no_text_hides_none_of_hundreds(path: Path, store: Store) -> None:
    """A listing that has begun goes on where it was, and tells no key twice."""
    fill(store, *(f"k{number:04d}" for number in range(600)))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE keys SET metadata = CAST(x'7b22ff' AS TEXT) WHERE key = 'k0400'")
        db.commit()

    assert [info.key for info in store.scan("k")] == [f"k{number:04d}" for number in range(600)]
    assert [info.key for info in store.scan("k", limit=450)][-1] == "k0449"
