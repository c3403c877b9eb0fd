"""Retry, cancel, repair and report that are killed: all of it is there, or nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.project import Project, load_project
from tests.batch.damage import DAMAGES, forget_a_page
from tests.factories import environment_for, write_maps
from tests.kills.conftest import Kills, Places, maps_of, only_batch, rounds, rows, timeless
from tests.kills.driver import Driver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")


def make_worked(driver: Driver, root: Path) -> None:
    """A batch has failed pages, done ones and some that wait."""
    write_maps(maps_of(root), 300)
    worker = ("nimbus.worker", "--processor=processors:every_fifth_fails")
    assert driver.run(root, "nimbus.upload", "--limit=200").code == 0
    assert driver.run(root, "nimbus.batch.report").code == 0
    assert driver.run(root, *worker).code == 0
    assert driver.run(root, "nimbus.upload", f"--batch={only_batch(root)}").code == 0


def make_damaged(driver: Driver, root: Path) -> None:
    """Everything is wrong that verify knows."""
    write_maps(maps_of(root), 100)
    assert driver.run(root, "nimbus.upload").code == 0
    project: Project = load_project(root)
    with project.open_store() as store:
        for spoil, _ in DAMAGES.values():
            if spoil is not forget_a_page:  # which is the same page as the one without a status
                spoil(project, store)


CHANGES: dict[str, tuple[str, Callable[[Driver, Path], None], tuple[str, ...]]] = {
    "retry": ("worked", make_worked, ("nimbus.batch.retry",)),
    "cancel": ("worked", make_worked, ("nimbus.batch.cancel", "--batch=latest", "--reason=x")),
    "verify": ("damaged", make_damaged, ("nimbus.batch.verify", "--repair")),
}


@pytest.mark.parametrize("kind", CHANGES)
@rounds(6)
def test_a_change_is_killed_and_all_of_it_is_there_or_nothing(
    driver: Driver, places: Places, rng: random.Random, kind: str, number: int, size: int
) -> None:
    name, make, command = CHANGES[kind]
    start = places.made(name, lambda root: make(driver, root))
    old = rows(start)
    clean, within = places.unhurt(start, *command)
    new = timeless(rows(clean))
    assert timeless(old) != new
    kills, found = Kills(driver, rng, size), Counter[str]()
    while kills:
        root = places.copy(start)
        kills.run(root, *command, within=within)
        now = rows(root)
        found["old" if now == old else "new"] += 1
        assert now == old or timeless(now) == new
        assert driver.run(root, *command).code == 0
        assert timeless(rows(root)) == new
        shutil.rmtree(root)
    print(f"{kind}: {dict(found)}")


@rounds(7)
def test_a_report_is_killed_and_the_file_is_the_old_one_or_the_new_one(
    driver: Driver, places: Places, rng: random.Random, number: int, size: int
) -> None:
    start = places.made("worked", lambda root: make_worked(driver, root))
    old = report_of(start)
    clean, within = places.unhurt(start, "nimbus.batch.report")
    new = report_of(clean)
    assert old
    assert new
    assert old != new
    kills = Kills(driver, rng, size)
    while kills:
        root = places.copy(start)
        is_first = rng.random() < 0.5
        if is_first:
            shutil.rmtree(root / ".nimbus" / "reports")
        kills.run(root, "nimbus.batch.report", within=within)
        assert report_of(root) in (None if is_first else old, new)
        assert driver.run(root, "nimbus.batch.report").code == 0
        assert report_of(root) == new
        assert rows(root) == rows(start)
        shutil.rmtree(root)


#: A killed process cannot clean up: this one is killed when its file is written and not in place.
KILLED_AT_THE_SYNC = """
import os, signal
from invoke.main import program
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
program.run(["invoke", "nimbus.batch.report"])
"""


def test_what_a_killed_report_has_left_goes_with_a_later_one(
    driver: Driver, places: Places
) -> None:
    root = places.copy(places.made("worked", lambda root: make_worked(driver, root)))
    reports = root / ".nimbus" / "reports"
    [report] = reports.iterdir()
    command = [sys.executable, "-c", KILLED_AT_THE_SYNC]
    killed = subprocess.run(command, cwd=root, env=environment_for(), check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = set(reports.iterdir()) - {report}
    os.utime(left, (0, 0))  # nobody is still writing it
    assert driver.run(root, "nimbus.batch.report").code == 0
    assert list(reports.iterdir()) == [report]


def report_of(root: Path) -> Any:
    """The report, but for the moment when it was made; ``None`` if there is none."""
    found = list((root / ".nimbus" / "reports").glob("batch_*_report.json"))
    if not found:
        return None
    [path] = found
    return {**json.loads(path.read_text()), "generated": None}
