"""huey beside the worker, where it is installed (``pip install huey``): the same pages.

A task reads its page's file, parses it and returns an outcome, which huey writes to SQLite: what a
home-made batch does with it. Eight threads; every commit synced, as ours are and as huey has it
where nothing is said, and with SQLite's ``synchronous = NORMAL``. As it is about pages a second,
what either takes to start, with nothing to do, does not count.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import REPOSITORY, Cost, at_rest, in_turns, run
from benchmarks.row import Row

#: 5,000 pages a second where huey, not synced, does some 3,050.
TO_HUEY = 3050 / 5000


def rows(maps: Path, nothing: Path, database: Path, worker: Cost, repeats: int) -> Iterator[Row]:
    """The worker, beyond its start, beside huey; none where that is not installed. ``nothing`` is a
    folder without pages."""
    if find_spec("huey") is None:
        return

    def work(synchronous: str, pages: Path = maps) -> Cost:
        argv = [sys.executable, "-m", "benchmarks.peers", str(pages), str(database), synchronous]
        run([*argv, "enqueue"], REPOSITORY)
        at_rest()
        return run([*argv, "work"], REPOSITORY)

    start, synced, normal = in_turns(
        repeats,
        lambda: work("FULL", nothing),
        lambda: work("FULL"),
        lambda: work("NORMAL"),
    )
    pages = sum(1 for _ in maps.rglob("*.json"))
    for huey, how, target in ((synced, "synced", 1.0), (normal, "NORMAL", TO_HUEY)):
        yield Row(
            "worker, trivial, beside huey",
            pages,
            worker.seconds,
            worker.megabytes,
            f"huey on SQLite, {how}: work off",
            huey.seconds - start.seconds,
            target,
        )


def main(maps: str, database: str, synchronous: str, what: str) -> None:
    """Enqueue all pages, or work them off."""
    from huey import SqliteHuey  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from huey.storage import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        SqliteStorage,
    )

    class Storage(SqliteStorage):  # type: ignore[misc, unused-ignore]
        def _create_connection(self) -> sqlite3.Connection:
            connection: sqlite3.Connection = super()._create_connection()
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            return connection

    if what == "enqueue":
        for ending in ("", "-wal", "-shm"):
            Path(database + ending).unlink(missing_ok=True)
    huey = SqliteHuey("bench", filename=database, storage_class=Storage)

    def process(path: str) -> dict[str, object]:
        json.loads(Path(path).read_bytes())
        return {"changes": 1, "confidence": 0.5}

    task = huey.task()(process)
    if what == "enqueue":
        for path in sorted(map(str, Path(maps).rglob("*.json"))):
            task(path)
        return
    pages = huey.pending_count()
    consumer = huey.create_consumer(
        workers=8, worker_type="thread", periodic=False, initial_delay=0.01, max_delay=0.05
    )
    consumer.start()
    while huey.result_count() < pages:
        time.sleep(0.05)
    os._exit(0)  # its threads have nothing more to do, and would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
