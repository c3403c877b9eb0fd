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
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import REPOSITORY, Cost, at_rest, in_turns, run

#: Seconds of the worker to one of huey's. NORMAL: 5,000 pages a second where huey does some 3,050.
TARGETS = {"FULL": 1.0, "NORMAL": 3050 / 5000}


class Huey(NamedTuple):
    """huey's consumer, of a task a map; ``synchronous`` is SQLite's word for what it syncs."""

    maps: Path
    database: Path
    synchronous: str

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"huey on SQLite, {self.synchronous}: work off"

    @property
    def target(self) -> float:
        """The most that the worker may take of its time."""
        return TARGETS[self.synchronous]

    def work_off(self) -> Cost:
        """The cost of its tasks, which are enqueued before."""
        self._run("enqueue")
        at_rest()
        return self._run("work")

    def start_seconds(self) -> float:
        """What it takes with nothing to do."""
        with tempfile.TemporaryDirectory() as nothing:
            idle = self._replace(maps=Path(nothing))
            return in_turns(3, idle.work_off)[0].seconds

    def _run(self, what: str) -> Cost:
        argv = [str(self.maps), str(self.database), self.synchronous, what]
        return run([sys.executable, "-m", "benchmarks.peers", *argv], REPOSITORY)


def hueys(maps: Path, database: Path) -> list[Huey]:
    """Every kind of it; none where it is not installed."""
    if find_spec("huey") is None:
        return []
    return [Huey(maps, database, synchronous) for synchronous in TARGETS]


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
