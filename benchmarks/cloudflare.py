"""Cloudflare at 40 ms a request: what the commands take, to the round trips that the rules allow.

The server is the tests' own, in a process of its own, so that it does not slow down what it serves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measure import REPOSITORY, Cost, floor, in_turns, invoke, work_off
from benchmarks.pages import make_maps
from benchmarks.row import Row

PAGES, BYTES, LATENCY = 1000, 8_000, 0.040
_FLOOR = f"as many round trips at {LATENCY * 1000:g} ms by requests"


class Rounds(NamedTuple):
    """Requests that must follow one another, and seconds that must lie between writes of a key;
    which of the requests are listings of a thousand keys, by how those begin."""

    requests: int
    pauses: float = 0.0
    listings: tuple[str, ...] = ()


#: Upload: one listing of batches and one of statuses; the batch record, contents, statuses, queue
#: items, the batch record again (a second after the first time: a key takes one write a second).
#: Status: the batches and the statuses. Report: these, and the logs.
RULES = {
    "upload": Rounds(7, 1.0),
    "status": Rounds(2, 0.0, ("batch:", "status:")),
    "report": Rounds(3, 0.0, ("batch:", "status:", "logs:")),
}


def rows(project: Path, repeats: int) -> Iterator[Row]:
    """Upload, status and report of a thousand pages."""
    make_maps(project / ".nimbus" / "maps", PAGES, BYTES)
    start = in_turns(3, lambda: invoke(project, "--list"))[0].seconds
    bare = in_turns(3, lambda: floor("nothing"))[0].seconds
    costs: dict[str, list[Cost]] = {name: [] for name in RULES}
    floors: dict[str, list[float]] = {name: [] for name in RULES}
    requests: dict[str, int] = {}
    for _ in range(repeats):
        with _server() as (prefix, namespace, count):
            _point(project, prefix, namespace)
            for name, arguments in (
                ("upload", ("nimbus.upload",)),
                ("status", ("nimbus.batch.status", "--batch=latest")),
                ("report", ("nimbus.batch.report",)),
            ):
                if name == "report":
                    work_off(project)
                before = count()
                costs[name].append(invoke(project, *arguments))
                requests[name] = count() - before
                count_of, pause, listings = RULES[name]
                least = floor("round_trips", prefix, namespace, count_of, pause, *listings)
                floors[name].append(least.seconds - bare)
                for memory in (project / ".nimbus").glob("recent-*"):
                    memory.unlink()  # the next one asks for everything
    for name in RULES:
        taken = median(cost.seconds for cost in costs[name]) - start
        yield Row(
            f"Cloudflare, {name}",
            PAGES,
            taken,
            max(cost.megabytes for cost in costs[name]),
            _FLOOR,
            median(floors[name]),
            1.3,
            requests[name],
        )


@contextmanager
def _server() -> Iterator[tuple[str, str, Callable[[], int]]]:
    argv = [sys.executable, "-m", "benchmarks.cloudflare"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout
        prefix, namespace = json.loads(answers.readline())

        def count() -> int:
            ask.write("\n")
            ask.flush()
            return int(answers.readline())

        try:
            yield prefix, namespace, count
        finally:
            ask.close()


def _point(project: Path, prefix: str, namespace: str) -> None:
    path = project / ".nimbus" / "project-config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["store"] = "cloudflare"
    config["cloudflare"] = {"api_base": prefix, "namespace_id": namespace}
    path.write_text(json.dumps(config), encoding="utf-8")


def serve() -> None:
    """Print where the server is; then, for every line that is read, how many requests it had."""
    from tests.kv.kv_server import KVServer

    with KVServer(latency=LATENCY) as server:
        print(json.dumps([server.prefix, server.namespace]), flush=True)
        for _ in sys.stdin:
            print(len(server.requests), flush=True)


if __name__ == "__main__":
    serve()
