"""The floors: the least that must happen for an operation, without records, checks or progress.

Each runs as a process of its own, ``python -m benchmarks.floors NAME ARGUMENTS``, so that it is
measured as the operation is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path


def nothing() -> None:
    """Python itself."""


def send(maps: str, database: str) -> None:
    """Read, parse and hash every file, and write the same bytes in one transaction."""
    Path(database).unlink(missing_ok=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        _prepare(db, "FULL")
        db.execute("BEGIN IMMEDIATE")
        for path in sorted(Path(maps).rglob("*.json")):
            data = path.read_bytes()
            json.loads(data)
            digest = hashlib.sha256(data).hexdigest()
            db.execute("INSERT INTO pages VALUES (?, ?, ?)", (path.name, data.decode(), digest))
        db.execute("COMMIT")


def hash_files(maps: str) -> None:
    """Read, parse and hash every file."""
    for path in sorted(Path(maps).rglob("*.json")):
        data = path.read_bytes()
        json.loads(data)
        hashlib.sha256(data).hexdigest()


def scan(store: str) -> None:
    """One listing of the pages' statuses, with metadata."""
    with closing(sqlite3.connect(store)) as db:
        print(sum(1 for _ in _listing(db)))


def report(store: str, to: str) -> None:
    """Read the same records and write the same JSON: the listings of statuses and logs, and an
    object a page in the order of the paths."""
    with closing(sqlite3.connect(store)) as db, Path(to).open("w", encoding="utf-8") as file:
        logged = {key[5:]: metadata["entries"] for key, metadata in _listing(db, "logs")}
        pages = sorted((str(found["path"]), key, found) for key, found in _listing(db))
        remaining = iter(pages)
        while some := list(islice(remaining, 500)):
            rows = [
                {"page_id": key, **found, "log_entries": logged[key[7:]]} for _, key, found in some
            ]
            file.write(json.dumps(rows, ensure_ascii=False)[1:-1] + ",\n")


def write(database: str, rows: str) -> None:
    """One transaction of as many small rows."""
    Path(database).unlink(missing_ok=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        _prepare(db, "FULL")
        db.execute("BEGIN IMMEDIATE")
        for number in range(int(rows)):
            db.execute(
                "INSERT INTO pages VALUES (?, ?, ?)", (f"{number:09d}", "x" * 400, "y" * 250)
            )
        db.execute("COMMIT")


def pool(database: str, pages: str, threads: str, wait: str, maps: str = "") -> None:
    """A bare thread pool: every page waits so many seconds and writes one row, committed alone;
    where there are ``maps``, it reads and parses one before."""
    Path(database).unlink(missing_ok=True)
    lock, seconds = threading.Lock(), float(wait)
    files = sorted(Path(maps).rglob("*.json")) if maps else []
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    with closing(connection) as db, ThreadPoolExecutor(int(threads)) as executor:
        _prepare(db, "NORMAL")

        def work(number: int) -> None:
            if files:
                json.loads(files[number].read_bytes())
            if seconds:
                time.sleep(seconds)
            with lock:
                db.execute("INSERT INTO pages VALUES (?, 'done', '')", (f"{number:09d}",))

        begun = time.perf_counter()
        list(executor.map(work, range(int(pages))))
        print(time.perf_counter() - begun)


def round_trips(prefix: str, namespace: str, count: str, pause: str, *listings: str) -> None:
    """Requests that follow one another, and the pause that must lie between two of them;
    ``listings`` of the keys that begin so, whose answers are parsed, are among them."""
    import requests

    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {os.environ.get('CLOUDFLARE_API_TOKEN', '')}"
        for begin in listings:
            asked = {"prefix": begin, "limit": "1000"}
            keys = f"{prefix}/storage/kv/namespaces/{namespace}/keys"
            answer = session.get(keys, params=asked, timeout=60)
            answer.raise_for_status()
            answer.json()
        for _ in range(int(count) - len(listings)):
            session.get(f"{prefix}/storage/kv/namespaces", timeout=60).content  # noqa: B018
    time.sleep(float(pause))


def _prepare(db: sqlite3.Connection, synchronous: str) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("CREATE TABLE pages (key TEXT PRIMARY KEY, value TEXT, metadata TEXT)")


def _listing(
    db: sqlite3.Connection, kind: str = "status"
) -> Iterator[tuple[str, dict[str, object]]]:
    rows = db.execute(
        "SELECT key, metadata FROM keys WHERE key >= ? AND key < ? ORDER BY key",
        (f"{kind}:", f"{kind};"),
    )
    # Parsed in groups: a call of the parser a row takes longer than the row.
    while some := list(islice(rows, 500)):
        yield from zip(
            [key for key, _ in some],
            json.loads(f"[{','.join(metadata for _, metadata in some)}]"),
            strict=True,
        )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
