"""Workers that are killed or stopped: every page has one outcome an attempt."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.lapses import MAX_LAPSES
from nimbus_tasks.core.project import load_project
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.worker.engine import LOOK_SECONDS
from tests.factories import write_maps
from tests.kills.conftest import (
    Kills,
    Places,
    check_outcomes,
    check_verified,
    maps_of,
    records,
    rounds,
    rows,
)
from tests.kills.driver import PATIENCE, Driver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")

LEASE = 0.4

#: A worker looks for leases that have ended every two seconds; the rest is for a slow machine.
RECOVERY = LEASE + LOOK_SECONDS + 20

PAGES = 40

WORKER = (
    "nimbus.worker",
    "--processor=processors:every_seventh_fails_first",
    "--max-attempts=99",
    f"--lease={LEASE}",
)


def make_uploaded(driver: Driver, root: Path) -> None:
    """A batch waits to be worked on."""
    write_maps(maps_of(root), PAGES)
    assert driver.run(root, "nimbus.upload").code == 0


@rounds(20)
def test_a_worker_is_killed_and_every_page_has_one_outcome_an_attempt(
    driver: Driver, places: Places, rng: random.Random, number: int, size: int
) -> None:
    uploaded = places.made("uploaded", lambda root: make_uploaded(driver, root))
    within = places.seconds(uploaded, *WORKER)
    kills, worst = Kills(driver, rng, size), 0.0
    while kills:
        root = places.copy(uploaded)
        for _ in range(rng.randint(1, 4)):
            concurrency = f"--concurrency={rng.choice([1, 4, 8])}"
            ran = kills.run(root, *WORKER, concurrency, within=within)
            if not (kills and ran.was_killed):
                break
            time.sleep(rng.choice([0, 0, LEASE * 1.1]))
        ran = driver.run(root, *WORKER)
        assert ran.code == 0
        worst = max(worst, ran.seconds)
        check_outcomes(root)
        give_another_chance(driver, root)
        check_all_done(driver, root)
        shutil.rmtree(root)
    print(f"the next worker had all pages done after {worst:.2f} s at the worst")
    assert worst < RECOVERY


def give_another_chance(driver: Driver, root: Path) -> None:
    """A page that its workers vanished with too often has failed, and only such a page."""
    lost = []
    for page_id, status in records(root, "status").items():
        if status["status"] == "done":
            continue
        assert status["error"]["code"] == "worker_lost", status
        entries = records(root, "logs")[page_id]["entries"]
        assert [e["data"]["lapses"] for e in entries[-1:] if e["step"] == "lease"] == [MAX_LAPSES]
        lost.append(page_id)
    if lost:
        retried = driver.document(root, "nimbus.batch.retry", "--error=worker_lost")
        assert sorted(retried["requeued"]) == sorted(lost)
        assert driver.run(root, *WORKER).code == 0


def check_all_done(driver: Driver, root: Path) -> None:
    """All pages are done, and everything that says so agrees."""
    status = driver.document(root, "nimbus.batch.status", "--batch=latest")
    assert status["counts"]["done"] == sum(status["counts"].values()) == PAGES
    assert (status["page_count"], status["status"], status["finished"]) == (
        PAGES,
        "completed",
        True,
    )
    assert status["summary"]["completed"] == PAGES
    [batch] = records(root, "batch").values()
    assert (batch["status"], batch["summary"]["completed"]) == ("completed", PAGES)
    check_outcomes(root)
    check_verified(driver, root)
    assert records(root, "queue") == {}
    assert all("optimization" in page for page in records(root, "page").values())
    met = Counter((root / "met").read_text().split())
    for page_id, page in records(root, "status").items():
        assert 1 <= met[page_id] <= page["attempts"]


def test_a_worker_stopped_past_its_lease_comes_too_late(driver: Driver, places: Places) -> None:
    """What it had in hand is another's by then; the other's outcomes stay."""

    root = places.copy(places.made("uploaded", lambda root: make_uploaded(driver, root)))
    lease = ("--lease=1", "--concurrency=3", "--json")
    slow = driver.start(root, "nimbus.worker", "--processor=processors:waits", *lease)
    until(lambda: len(in_flight(root)) == 3)
    held = in_flight(root)
    # Where it is stopped within a write, the others cannot write: that is another test's affair.
    lock = FileLock(load_project(root).store_path.with_name("kv.sqlite3.lock"))
    assert lock.acquire(PATIENCE)
    slow.send(signal.SIGSTOP)
    lock.close()
    other = driver.document(root, "nimbus.worker", "--processor=processors:fine", *lease[:2])
    assert (other["done"], other["taken_up"]) == (PAGES, 3)
    before = rows(root)
    (root / "go").touch()
    slow.send(signal.SIGCONT)
    ran = driver.wait(slow)
    assert ran.code == 0, ran.err
    late = json.loads(ran.out)
    assert (late["done"], late["refused"]) == (0, 3)
    assert rows(root) == before
    check_outcomes(root)
    for page_id, status in records(root, "status").items():
        assert status["attempts"] == (2 if page_id in held else 1)
    for page in records(root, "page").values():
        assert page["optimization"] == {"by": "fine"}
    check_verified(driver, root)


def in_flight(root: Path) -> set[str]:
    """The ids of the pages that are at work."""
    return {page_id for page_id, status in records(root, "status").items() if at_work(status)}


def at_work(status: Mapping[str, Any]) -> bool:
    return bool(status["status"] == "processing")


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_worker_that_lives_keeps_its_pages_however_short_the_lease(
    driver: Driver, places: Places
) -> None:
    root = places.copy(places.made("uploaded", lambda root: make_uploaded(driver, root)))
    running = driver.start(root, "nimbus.worker", "--processor=processors:waits", "--lease=0.45")
    until(lambda: in_flight(root) != set())
    looks, lapsed, end = 0, 0, time.monotonic() + 2
    while time.monotonic() < end:
        now = now_iso()  # first: it may take a while to read them
        leases = [s["processing"]["lease"] for s in records(root, "status").values() if at_work(s)]
        assert leases
        looks, lapsed = looks + 1, lapsed + any(lease < now for lease in leases)
        time.sleep(0.01)
    (root / "go").touch()
    assert driver.wait(running).code == 0
    # A machine may stand still for a moment. Renewed each second, as step and progress are written,
    # they would have lapsed half of the time.
    assert lapsed <= looks / 4


@rounds(4)
def test_workers_are_stopped_anywhere_past_their_leases(
    driver: Driver, places: Places, rng: random.Random, number: int, size: int
) -> None:
    """One that is stopped within a write keeps the others from writing until it goes on."""

    uploaded = places.made("uploaded", lambda root: make_uploaded(driver, root))
    within = places.seconds(uploaded, *WORKER)
    refused = 0
    for _ in range(size):
        root = places.copy(uploaded)
        stopped = driver.start(root, *WORKER, "--json")
        time.sleep(rng.uniform(0, within / 2))
        stopped.send(signal.SIGSTOP)
        time.sleep(LEASE * rng.choice([0.9, 1.1, 1.3]))
        other = driver.start(root, *WORKER)
        time.sleep(rng.uniform(0, 4 * within))
        stopped.send(signal.SIGCONT)
        ran = driver.wait(stopped)
        assert ran.code == driver.wait(other).code == 0
        refused += json.loads(ran.out)["refused"]
        check_all_done(driver, root)
        shutil.rmtree(root)
    print(f"{refused} late outcomes were refused")
