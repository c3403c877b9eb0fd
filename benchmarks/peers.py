"""huey beside the worker, where it is installed (``pip install huey``): the same pages.

A task reads its page's file, parses it and returns an outcome, which huey writes to SQLite: what a
home-made batch does with it. Eight threads; every commit synced, as ours are and as huey has it
where nothing is said, and none synced.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import REPOSITORY, Cost, in_turns, run
from benchmarks.row import Row


def rows(maps: Path, database: Path, worker: Cost, repeats: int) -> Iterator[Row]:
    """The worker beside huey; none where that is not installed."""
    if find_spec("huey") is None:
        return
    argv = [sys.executable, "-m", "benchmarks.peers", str(maps), str(database)]
    synced, unsynced = in_turns(
        repeats,
        lambda: run([*argv, "synced"], REPOSITORY),
        lambda: run([*argv, "unsynced"], REPOSITORY),
    )
    pages = sum(1 for _ in maps.rglob("*.json"))
    for huey, how in ((synced, "synced"), (unsynced, "nothing synced")):
        yield Row(
            "worker, trivial, beside huey",
            pages,
            worker.seconds,
            worker.megabytes,
            f"huey on SQLite, {how}: enqueue and work off",
            huey.seconds,
            1.0 if huey is synced else None,
        )


def main(maps: str, database: str, how: str) -> None:
    """Enqueue all pages and work them off, as one process."""
    from huey import SqliteHuey  # type: ignore[import-not-found, import-untyped, unused-ignore]

    for ending in ("", "-wal", "-shm"):
        Path(database + ending).unlink(missing_ok=True)
    huey = SqliteHuey("bench", filename=database, fsync=None if how == "synced" else False)

    def process(path: str) -> dict[str, object]:
        json.loads(Path(path).read_bytes())
        return {"changes": 1, "confidence": 0.5}

    work = huey.task()(process)

    paths = sorted(map(str, Path(maps).rglob("*.json")))
    for path in paths:
        work(path)
    consumer = huey.create_consumer(
        workers=8, worker_type="thread", periodic=False, initial_delay=0.01, max_delay=0.05
    )
    consumer.start()
    while huey.result_count() < len(paths):
        time.sleep(0.05)
    os._exit(0)  # its threads have nothing more to do, and would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
