"""Every operation beside its floor: ``invoke bench``.

The rows are measured on projects of the benchmark's own, in a folder that goes when it ends. Where
an operation has a process around it, "beyond" is what it takes more than the same command on a
batch of ten pages, for the floor likewise: that is what grows with the batch.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import cloudflare, peers
from benchmarks.measure import (
    Cost,
    at_rest,
    differences,
    floor,
    in_turns,
    invoke,
    work_off,
)
from benchmarks.pages import make_maps
from benchmarks.row import HEADING, Row

#: Of the rows about the worker, and about requests, however large the batch is.
WORKER_PAGES, WORKER_BYTES = 10_000, 8_000
WAITING_PAGES, WAITING_THREADS, WAITING_SECONDS = WORKER_PAGES, 16, 0.02
SMALL = 10
#: What is the same at every size is measured once more often.
_STARTS = 25

_EMPTY_TASKS = '''"""A project without nimbus."""

from invoke.tasks import task


@task
def build(c):
    """Build it."""
'''
_TASKS = '''"""A project with nimbus."""

from invoke.collection import Collection
from nimbus_tasks import nimbus

ns = Collection(nimbus)
'''


class Bench:
    """The measurements, in the folder ``work``; ``pages`` is the size of the batch."""

    def __init__(self, work: Path, pages: int, repeats: int) -> None:
        self._work, self._pages, self._repeats = work, pages, repeats
        self._small = self._project("small")
        make_maps(self._maps(self._small), SMALL)
        invoke(self._small, "nimbus.upload")
        work_off(self._small)

    def rows(self) -> Iterator[Row]:
        """All of them, as they are measured."""
        yield from self._starts()
        yield from self._batch()
        yield from self._worker()
        yield from cloudflare.rows(self._project("cloudflare"), self._repeats)

    def _starts(self) -> Iterator[Row]:
        empty = self._work / "empty"
        empty.mkdir()
        (empty / "tasks.py").write_text(_EMPTY_TASKS)
        listing, status, bare = in_turns(
            _STARTS,
            lambda: invoke(self._small, "--list"),
            lambda: invoke(self._small, "nimbus.batch.status", "--batch=latest"),
            lambda: invoke(empty, "--list"),
        )
        name = "invoke --list, empty tasks.py"
        yield self._row("invoke --list", 0, listing, name, bare, 1.10)
        yield self._row("status, whole process", SMALL, status, name, bare, 1.25)

    def _batch(self) -> Iterator[Row]:
        project, scratch = self._project("batch"), self._work / "floor.sqlite3"
        maps, store = self._maps(project), project / ".nimbus" / "kv.sqlite3"
        make_maps(maps, self._pages)
        _warm(maps)

        def upload() -> Cost:
            for path in store.parent.glob("kv.sqlite3*"):
                path.unlink()
            return invoke(project, "nimbus.upload")

        sent, least = in_turns(self._repeats, upload, lambda: floor("send", maps, scratch))
        yield self._row(
            "upload", self._pages, sent, "read, parse, hash, one transaction", least, 1.6
        )
        scratch.unlink()
        same, least = in_turns(
            self._repeats,
            lambda: invoke(project, "nimbus.upload", "--changed"),
            lambda: floor("hash_files", maps),
        )
        yield self._row(
            "upload --changed, nothing has", self._pages, same, "read, parse, hash", least
        )
        work_off(project)
        small_store = self._small / ".nimbus" / "kv.sqlite3"
        for name, target, arguments in (
            ("status", 2.0, ("status", "--batch=latest")),
            ("monitor, one tick", 2.0, ("monitor", "--once")),
            ("list", None, ("list",)),
            ("metrics", None, ("metrics",)),
            ("verify", None, ("verify",)),
        ):
            yield self._beyond(
                name,
                project,
                arguments,
                "one listing with metadata",
                lambda: floor("scan", store),
                lambda: floor("scan", small_store),
                target,
            )
        to = self._work / "floor.json"
        yield self._beyond(
            "report",
            project,
            ("report",),
            "read the same records, write the same JSON",
            lambda: floor("report", store, to),
            lambda: floor("report", small_store, to),
            2.0,
        )
        failed = self._count_failed(store)
        retried, least = in_turns(
            1, lambda: invoke(project, "nimbus.batch.retry"), lambda: floor("scan", store)
        )
        yield self._row(f"retry of {failed:,}", self._pages, retried, "one listing", least)
        shutil.rmtree(store.parent / "reports", ignore_errors=True)
        upload()
        cancelled, least = in_turns(
            1,
            lambda: invoke(project, "nimbus.batch.cancel", "--batch=latest"),
            lambda: floor("write", scratch, 2 * self._pages),
        )
        yield self._row(
            "cancel of all", self._pages, cancelled, "one transaction of as many rows", least
        )
        shutil.rmtree(project)

    def _beyond(
        self,
        name: str,
        project: Path,
        arguments: tuple[str, ...],
        floor_name: str,
        least: Callable[[], Cost],
        least_small: Callable[[], Cost],
        target: float | None,
    ) -> Row:
        task, options = f"nimbus.batch.{arguments[0]}", arguments[1:]
        # More often where there is a target: it is about parts of a second, in which much happens.
        beyond, low = differences(
            max(9 if target is None else _STARTS, self._repeats),
            (
                lambda: invoke(project, task, *options),
                lambda: invoke(self._small, task, *options),
            ),
            (least, least_small),
        )
        return self._row(
            f"{name}, beyond a small one",
            self._pages,
            beyond._replace(seconds=max(0.0, beyond.seconds)),
            floor_name,
            low._replace(seconds=max(1e-3, low.seconds)),
            target,
        )

    def _worker(self) -> Iterator[Row]:
        project, scratch = self._project("worker"), self._work / "floor.sqlite3"
        make_maps(self._maps(project), WORKER_PAGES, WORKER_BYTES)

        def work(processor: str, *options: str, pages: int = WORKER_PAGES) -> Cost:
            for path in (project / ".nimbus").glob("kv.sqlite3*"):
                path.unlink()
            invoke(project, "nimbus.upload", f"--limit={pages}")
            at_rest()
            return work_off(project, processor, *options)

        start, bare_start = in_turns(3, lambda: work_off(self._small), lambda: floor("nothing"))

        def beyond(
            name: str, pages: int, cost: Cost, floor_name: str, least: Cost, target: float | None
        ) -> Row:
            return self._row(
                name,
                pages,
                cost._replace(seconds=cost.seconds - start.seconds),
                floor_name,
                least._replace(seconds=least.seconds - bare_start.seconds),
                target,
            )

        # In turns with the worker, as the pool: the machine is not as fast the next minute.
        hueys = peers.hueys(self._maps(project), self._work / "huey.db")
        trivial, least, parsed, *others = in_turns(
            self._repeats,
            lambda: work("trivial"),
            lambda: floor("pool", scratch, WORKER_PAGES, 8, 0),
            lambda: floor("pool", scratch, WORKER_PAGES, 8, 0, self._maps(project)),
            *(huey.work_off for huey in hueys),
        )
        name, one_row = "worker, trivial processor", "a thread pool, one row a page"
        yield beyond(name, WORKER_PAGES, trivial, one_row, least, 8000 / 5000)
        reads = "the same, that reads and parses its page"
        yield beyond(name, WORKER_PAGES, trivial, reads, parsed, None)
        for huey, other in zip(hueys, others, strict=True):
            yield self._row(
                "worker, trivial, beside huey",
                WORKER_PAGES,
                trivial._replace(seconds=trivial.seconds - start.seconds),
                huey.name,
                other._replace(seconds=other.seconds - huey.start_seconds()),
                huey.target,
            )
        waited, least = in_turns(
            self._repeats,
            lambda: work("waiting", f"--concurrency={WAITING_THREADS}", pages=WAITING_PAGES),
            lambda: floor("pool", scratch, WAITING_PAGES, WAITING_THREADS, WAITING_SECONDS),
        )
        name = f"worker, {WAITING_SECONDS * 1000:g} ms a page, {WAITING_THREADS} at a time"
        yield beyond(name, WAITING_PAGES, waited, one_row, least, 1 / 0.97)

    def _project(self, name: str) -> Path:
        project = self._work / name
        (project / ".nimbus").mkdir(parents=True)
        (project / "tasks.py").write_text(_TASKS)
        invoke(project, "nimbus.init", f"--name={name}")
        return project

    def _maps(self, project: Path) -> Path:
        return project / ".nimbus" / "maps"

    def _row(
        self,
        operation: str,
        pages: int,
        cost: Cost,
        floor_name: str,
        least: Cost,
        target: float | None = None,
    ) -> Row:
        return Row(
            operation, pages, cost.seconds, cost.megabytes, floor_name, least.seconds, target
        )

    def _count_failed(self, store: Path) -> int:
        with sqlite3.connect(store) as db:
            query = 'SELECT count(*) FROM keys WHERE metadata LIKE \'%"status":"failed"%\''
            return int(db.execute(query).fetchone()[0])


def _warm(folder: Path) -> None:
    """Files that were just written are read from memory; so is every one of them, then."""
    for path in folder.rglob("*.json"):
        path.read_bytes()


def main(pages: int, repeats: int, to: Path, tell: Callable[[str], None]) -> list[Row]:
    """Measure, tell a line a row as it comes, and write them all to ``to`` as JSON."""
    found: list[Row] = []
    tell(HEADING)
    with tempfile.TemporaryDirectory(prefix="nimbus-bench-") as work:
        for row in Bench(Path(work), pages, repeats).rows():
            found.append(row)
            tell(row.line())
    to.parent.mkdir(parents=True, exist_ok=True)
    figures = [{**asdict(row), "ratio": row.ratio, "holds": row.holds} for row in found]
    document = {"machine": machine(), "pages": pages, "rows": figures}
    to.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return found


def machine() -> dict[str, object]:
    """What a figure depends on."""
    return {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": os.getloadavg()[0] if sys.platform != "win32" else None,
    }
