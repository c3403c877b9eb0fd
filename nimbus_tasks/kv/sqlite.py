"""The embedded store: one SQLite file, several processes at once, no server and no account.

Two tables, one of keys with metadata and one of values: a listing then reads no values, which is
ten times faster. Every write transaction takes the write lock at its beginning (``BEGIN
IMMEDIATE``) and is held between processes by :class:`~nimbus_tasks.kv.lock.FileLock`, round
checkpoints too, since SQLite before 3.51.3 can corrupt a WAL that two processes reset at once.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from nimbus_tasks.core.errors import (
    DamagedStoreError,
    StoreError,
    StoreGoneError,
    StoreUnreachableError,
    cannot_write,
)
from nimbus_tasks.kv.encoding import json_encoder
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.kv.sqlite_file import check_place, make_private, store_error
from nimbus_tasks.kv.store import (
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_VALUE_BYTES,
    SCANNED_TOGETHER,
    Entry,
    KeyInfo,
    KeyValues,
    Metadata,
    Store,
    sound_metadata,
)

SCHEMA_VERSION = 1
#: "nimb": tells our files from other SQLite files.
APPLICATION_ID = 0x6E696D62
#: Longer than the longest transaction: a cancel of 100,000 pages takes a few seconds.
LOCK_TIMEOUT_SECONDS = 60.0
#: SQLite's own lower limit on bound variables of old versions is 999.
_KEYS_A_QUERY = 500
#: Rows that are written in one go; fewer where their values are large, as they are held meanwhile.
_ROWS_A_WRITE, _CHARACTERS_A_WRITE = 100, 500_000

_SCHEMA = """
CREATE TABLE keys (key TEXT PRIMARY KEY NOT NULL, metadata TEXT) WITHOUT ROWID;
CREATE TABLE vals (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
"""


class SqliteStore(Store):
    """A store in the file ``path``, which is made if ``create`` is set.

    What is written survives a power cut, unless ``durable`` is not set: then the last may be lost.
    ``tell`` is told in words where another process has to be waited for.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        durable: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path, self._tell = path, tell
        check_place(path, create)
        try:
            if not path.exists():
                make_private(path)
            # Before it is opened: one that is put there meanwhile is then taken for a stranger.
            self._inode = path.stat().st_ino
            self._lock = FileLock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise cannot_write(f"the store {path}", error) from error
        self._writing = self._closed = False
        with ExitStack() as opened:
            opened.callback(self._lock.close)
            with self._translated():
                self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)
                opened.callback(self._db.close)
                # FULL: what a command has called done survives a power cut. Commits are grouped, so
                # that the three milliseconds of a sync are paid some twenty times a second at most.
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._prepare()
            opened.pop_all()

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for some in self._rows("key, value, metadata FROM keys JOIN vals USING (key)", keys):
            loaded = _load_many([metadata for _, _, metadata in some])
            for (key, value, _), metadata in zip(some, loaded, strict=True):
                found[key] = Entry(key, _text(value), metadata)
        return found

    def get_values(self, keys: Iterable[str]) -> dict[str, str]:
        return {
            key: _text(value)
            for some in self._rows("key, value FROM vals", keys)
            for key, value in some
        }

    def _rows(self, what: str, keys: Iterable[str]) -> Iterator[list[Any]]:
        """Rows of those keys, some at a time, in the order in which they lie."""
        remaining = iter(keys)
        while chunk := list(islice(remaining, _KEYS_A_QUERY)):
            query = f"SELECT {what} WHERE key IN ({','.join('?' * len(chunk))})"
            with self._translated():
                try:
                    some = self._db.execute(query, chunk).fetchall()
                except sqlite3.OperationalError as error:
                    self._read_leniently(error)
                    some = self._db.execute(query, chunk).fetchall()
            yield some

    def put_many(self, entries: Iterable[Entry]) -> None:
        with self.transaction(), self._translated():
            for chunk in _in_writes(entries):
                small = [(key, None if data is None else _dump(data)) for key, _, data in chunk]
                for (key, value, _), (_, metadata) in zip(chunk, small, strict=True):
                    _check_limits(key, value, metadata)
                self._db.executemany(
                    "INSERT INTO keys VALUES (?, ?)"
                    " ON CONFLICT (key) DO UPDATE SET metadata = excluded.metadata",
                    small,
                )
                self._db.executemany(
                    "INSERT INTO vals VALUES (?, ?)"
                    " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    ((key, value) for key, value, _ in chunk),
                )

    def delete_many(self, keys: Iterable[str]) -> None:
        doomed = [(key,) for key in keys]
        with self.transaction(), self._translated():
            self._db.executemany("DELETE FROM keys WHERE key = ?", doomed)
            self._db.executemany("DELETE FROM vals WHERE key = ?", doomed)

    def scan(self, prefix: str, *, limit: int | None = None) -> Iterator[KeyInfo]:
        for keys, metadata in self._listed(prefix, limit):
            yield from map(KeyInfo, keys, metadata)

    def scan_many(self, prefix: str) -> Iterator[tuple[list[str], list[Metadata | None]]]:
        return self._listed(prefix, None)

    def _listed(
        self, prefix: str, limit: int | None
    ) -> Iterator[tuple[list[str], list[Metadata | None]]]:
        first, end = prefix, _after_prefix(prefix)
        # Two plain bounds, that the index takes; any other condition is asked of every row.
        below = "" if end is None else "AND key < ?3"
        query = f"SELECT key, metadata FROM keys WHERE key >= ?1 {below} ORDER BY key LIMIT ?2"
        with self._translated(), closing(self._db.cursor()) as cursor:
            left = -1 if limit is None else limit
            while True:
                cursor.execute(query, (first, left) if end is None else (first, left, end))
                try:
                    while rows := cursor.fetchmany(SCANNED_TOGETHER):
                        keys, texts = [key for key, _ in rows], [text for _, text in rows]
                        yield keys, _load_many(texts)
                        first, left = keys[-1] + "\0", left - len(keys) if limit else -1
                    return
                except sqlite3.OperationalError as error:
                    self._read_leniently(error)

    @contextmanager
    def transaction(self) -> Iterator[KeyValues]:
        if self._writing:  # a write inside a transaction belongs to it
            yield self
            return
        with self._locked():
            self._check_still_there()
            self._writing = True
            try:  # round the beginning as well, in which Ctrl-C may come
                with self._translated():
                    self._db.execute("BEGIN IMMEDIATE")
                yield self
                with self._translated():
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._writing = False

    @contextmanager
    def snapshot(self) -> Iterator[KeyValues]:
        if self._db.in_transaction:
            yield self
            return
        self._check_still_there()
        try:
            with self._translated():
                self._db.execute("BEGIN")
            yield self
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def faults(self) -> list[str]:
        found = []
        with self._translated():
            (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            (mode,) = self._db.execute("PRAGMA journal_mode").fetchone()
            (lost,) = self._db.execute(
                "SELECT count(*) FROM keys LEFT JOIN vals USING (key) WHERE vals.key IS NULL"
            ).fetchone()
        if sound != "ok":
            found.append(f"{self._path} is damaged: {sound}")
        if lost:
            found.append(f"{self._path} has lost the values of {lost:,} keys")
        if mode != "wal":
            found.append(
                f"{self._path} lies on a file system without shared memory between processes"
            )
        return found

    def close(self) -> None:
        # The last connection to close checkpoints the log, so it takes the lock as well. Where
        # somebody else holds it, that one has a connection, and ours is not the last.
        if self._closed:
            return
        self._closed = True
        self._lock.acquire(timeout=0)
        self._db.close()
        self._lock.close()

    def _check_still_there(self) -> None:
        """A file that was deleted is written to all the same, and nobody ever reads it; who reads
        it waits for what nobody writes."""
        try:
            is_ours = self._path.stat().st_ino == self._inode
        except OSError:  # it is not there, or its folder is a file now, or may not be looked into
            is_ours = False
        if not is_ours:
            raise StoreGoneError(
                f"the store {self._path} was deleted or replaced while it was in use",
                advice="What was done since is lost. Put it back, or upload again.",
            )

    def _read_leniently(self, error: sqlite3.OperationalError) -> None:
        """After an ``error`` that is about a text that is no UTF-8, which others may have written:
        one such record must not hide the others. Not from the beginning: it takes time."""
        if "decode" not in str(error) or self._db.text_factory is not str:
            raise error
        self._db.text_factory = partial(str, encoding="utf-8", errors="replace")

    def _prepare(self) -> None:
        """Set the connection up, make the tables in a new file, refuse a file that is not ours."""
        self._db.execute(f"PRAGMA busy_timeout = {int(LOCK_TIMEOUT_SECONDS * 1000)}")
        version, application = self._stamp()
        if version == 0:
            self._create_schema()
            version, application = self._stamp()
        if application != APPLICATION_ID:
            raise DamagedStoreError(
                f"{self._path} is an SQLite file of another program",
                advice="Move it away; the next upload makes a new store.",
            )
        if version > SCHEMA_VERSION:
            raise DamagedStoreError(
                f"{self._path} was written by a newer nimbus-tasks (format {version})",
                advice="Update it: pip install --upgrade nimbus-tasks",
            )
        self._db.execute("PRAGMA journal_size_limit = 67108864")
        # A worker's statuses lie all over the table: what is written again and again is kept
        # in memory, and copied from the log to the file once, not at every commit.
        self._db.execute("PRAGMA cache_size = -8192")
        self._db.execute("PRAGMA wal_autocheckpoint = 8000")

    def _stamp(self) -> tuple[int, int]:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        return version, application

    def _create_schema(self) -> None:
        with self._locked():
            # Two processes may both have found the file new: the second one finds it made. A file
            # that has tables of others, or their mark, is not touched.
            is_empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if self._stamp() != (0, 0) or not is_empty:
                return
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.strip().split(";")[:-1]:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        words = "another nimbus command is writing to the store: waiting for it …"
        if not self._lock.acquire(LOCK_TIMEOUT_SECONDS, lambda: self._tell(words)):
            raise StoreUnreachableError(
                f"another process has held the store for {LOCK_TIMEOUT_SECONDS:.0f} seconds",
                advice="See which nimbus command hangs or is stopped, and end it.",
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where SQLite's errors become the project's own."""
        try:
            yield
        except sqlite3.Error as error:
            raise store_error(self._path, error) from error
        except UnicodeEncodeError as error:
            raise StoreError("half of a surrogate pair is no text that a store can hold") from error


def _in_writes(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    some: list[Entry] = []
    characters = 0
    for entry in entries:
        some.append(entry)
        characters += len(entry.value)
        if len(some) == _ROWS_A_WRITE or characters > _CHARACTERS_A_WRITE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _check_limits(key: str, value: str, metadata: str | None) -> None:
    if len(key) * 4 > MAX_KEY_BYTES and len(key.encode()) > MAX_KEY_BYTES:
        raise StoreError(f"a key may have {MAX_KEY_BYTES} bytes: {key[:60]}…")
    # A character is 4 bytes at the most: only values near the limit are encoded to be counted.
    if len(value) * 4 > MAX_VALUE_BYTES and len(value.encode()) > MAX_VALUE_BYTES:
        raise StoreError(f"the value of {key} is larger than {MAX_VALUE_BYTES} bytes")
    if metadata is not None and len(metadata) > MAX_METADATA_BYTES:
        raise StoreError(f"the metadata of {key} is larger than {MAX_METADATA_BYTES} bytes")


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _load(metadata: str | bytes | None) -> Metadata | None:
    try:
        text = metadata.decode() if isinstance(metadata, bytes) else metadata
        return sound_metadata(json.loads(text, parse_constant=_no_json)) if text else None
    except (ValueError, RecursionError):
        return None


def _load_many(texts: list[str | None]) -> list[Metadata | None]:
    try:
        joined = f"[{','.join([t or 'null' for t in texts])}]"
        loaded: list[Metadata | None] = json.loads(joined, parse_constant=_no_json)
    except (ValueError, TypeError, RecursionError):  # TypeError: of one that is no text, but bytes
        return [_load(text) for text in texts]
    if len(loaded) != len(texts) or not set(map(type, loaded)) <= _METADATA_TYPES:
        return [_load(text) for text in texts]
    if "\\" in joined and _SURROGATE.search(joined):
        return [_load(text) for text in texts]
    return loaded


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


#: Two searches for a text take ten times as long as one for a pattern.
_SURROGATE = re.compile(r"\\u[dD]")
_METADATA_TYPES = {dict, type(None)}


#: ASCII only, so that characters are bytes.
_dump = json_encoder(ensure_ascii=True)


def _after_prefix(prefix: str) -> str | None:
    """The first text, in byte order, that does not begin with ``prefix``; ``None`` if none."""
    rest = prefix.rstrip("\U0010ffff")
    if not rest:
        return None
    after = ord(rest[-1]) + 1
    # Halves of surrogate pairs are no characters: after U+D7FF comes U+E000.
    return rest[:-1] + chr(0xE000 if after == 0xD800 else after)
