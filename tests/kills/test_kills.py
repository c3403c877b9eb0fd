"""Killed anywhere: real commands on a real store, ended by ``kill -9`` at random moments.

``NIMBUS_KILLS=1000 python -m pytest tests/kills`` kills as many instead of 60. Only kills that find
the command alive count. A failure shows its ``NIMBUS_SEED``; set, it draws the same moments again,
which meet the same writes as far as the machine is as fast.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.keys import last_part
from nimbus_tasks.core.lapses import MAX_LAPSES
from nimbus_tasks.core.project import Project, load_project, new_project, save_project
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload import sending
from nimbus_tasks.worker.engine import LOOK_SECONDS
from tests.batch.damage import DAMAGES, forget_a_page
from tests.factories import a_map, environment_for, upload, write_map, write_maps
from tests.kills.driver import PATIENCE, Driver, Ran

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")

KILLS = int(os.environ.get("NIMBUS_KILLS", "60"))
SEED = os.environ.get("NIMBUS_SEED") or (
    "1" if os.environ.get("CI") else str(time.time_ns() % 10**6)
)
#: Of a test: several of them are shared among processes that test.
KILLS_A_TEST = 10
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

PROCESSORS = '''
import os, time
from pathlib import Path

def note(name, page):
    """Appended in one write, so that those of a killed worker are there as well."""
    file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, (page["page_id"] + "\\n").encode())
    os.close(file)

def every_seventh_fails_first(page, progress):
    """Fails every seventh page when it meets it for the first time."""
    number = int(page["source_path"][-8:-5])
    met = Path("met").exists() and page["page_id"] in Path("met").read_text()
    note("met", page)
    progress("half", 50)
    time.sleep(0.003)
    if number % 7 == 0 and not met:
        raise ValueError("the first time")
    return {"changes": 1, "confidence": 0.5, "optimization": {"number": number}}

def every_fifth_fails(page, progress):
    if int(page["source_path"][-8:-5]) % 5 == 0:
        raise ValueError("always")
    return {"changes": 1, "confidence": 0.5, "optimization": {"by": "every_fifth_fails"}}

def fine(page, progress):
    return {"changes": 1, "confidence": 0.5, "optimization": {"by": "fine"}}

def waits(page, progress):
    """Takes until the file `go` is there."""
    while not Path("go").exists():
        time.sleep(0.01)
    return {"changes": 9, "optimization": {"by": "waits"}}
'''


def rounds(part: int) -> pytest.MarkDecorator:
    """As many rounds as it takes for ``part`` sixtieths of the kills, and the kills of each."""
    share = math.ceil(KILLS * part / 60)
    count = math.ceil(share / KILLS_A_TEST)
    sizes = [share // count + (number < share % count) for number in range(count)]
    return pytest.mark.parametrize(
        ("number", "size"), list(enumerate(sizes)), ids=[str(number) for number in range(count)]
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """What starts the commands."""
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    made.close()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Draws what is left to chance in a test."""
    print(f"NIMBUS_KILLS={KILLS} NIMBUS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


class Kills:
    """Kills commands until enough have been killed."""

    def __init__(self, driver: Driver, rng: random.Random, wanted: int) -> None:
        self._driver, self._rng = driver, rng
        self.left = wanted
        self._tries = 40 * wanted

    def __bool__(self) -> bool:
        return self.left > 0

    def run(self, root: Path, *arguments: str, within: float, **constants: int) -> Ran:
        """Run a command that takes ``within`` seconds if it is left alone, and kill it somewhere
        on its way."""
        after = self._rng.uniform(0, within)
        ran = self._driver.run(root, *arguments, kill_after=after, **constants)
        print(f"{arguments[0]} after {after:.4f} of {within:.4f} s: {ran.code}")
        self.left -= ran.was_killed
        self._tries -= 1
        assert self._tries, "the kills come too late"
        return ran


@dataclass
class Places:
    """Projects at a certain point, made once and then copied."""

    folder: Path
    driver: Driver
    copies: int = 0

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The project ``name``, which ``make`` brings to its point the first time."""
        root = self.folder / name
        if not root.exists():
            root.mkdir()
            save_project(new_project(root, name="test", project_id="proj_0123456789ab"))
            (root / "processors.py").write_text(PROCESSORS)
            make(root)
        return root

    def copy(self, root: Path) -> Path:
        """A copy of a project, to be spoiled."""
        self.copies += 1
        copied = self.folder / f"copy-{self.copies}"
        shutil.copytree(root, copied)
        return copied

    def seconds(self, root: Path, *arguments: str, **constants: int) -> float:
        """How long a command takes in a project that is as ``root``, at the quickest."""
        return min(
            self.driver.run(self.copy(root), *arguments, **constants).seconds for _ in range(3)
        )

    def unhurt(self, root: Path, *arguments: str, **constants: int) -> tuple[Path, float]:
        """A copy in which a command has come to its end, and how long that takes."""
        copied = self.copy(root)
        assert self.driver.run(copied, *arguments, **constants).code == 0
        return copied, self.seconds(root, *arguments, **constants)


@pytest.fixture(scope="module")
def places(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("projects"), driver)


def maps_of(root: Path) -> Path:
    return root / ".nimbus" / "maps"


Row = tuple[str, str | None, str]


def rows(root: Path) -> list[Row]:
    """All that is in the store, in the order of its keys."""
    path = load_project(root).store_path
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return []
        return db.execute(
            "SELECT key, metadata, value FROM keys JOIN vals USING (key) ORDER BY key"
        ).fetchall()


def timeless(found: list[Row]) -> list[tuple[str, Any, Any]]:
    """What is the same of two stores in which the same has been done at other times. The order of
    the rows, and with it of the queue, is kept."""
    ids = sorted({last_part(key) for key, _, _ in found if key.startswith("batch:")})

    def even(text: str) -> str:
        text = re.sub(r"batch_\d{8}_\d{6}(_\d+)?", lambda m: f"B{ids.index(m[0])}", text)
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "T", text)
        text = re.sub(r":\d{20}:", ":T:", text)
        return re.sub(r'("(?:duration_ms|average_time_ms)": ?)[\d.]+', r"\g<1>0", text)

    def parsed(text: str | None) -> Any:
        try:
            return None if text is None else json.loads(even(text))
        except ValueError:  # a record that a test has damaged
            return text

    return [(even(key), parsed(metadata), parsed(value)) for key, metadata, value in found]


def records(root: Path, kind: str) -> dict[str, Any]:
    """The values of the records of a kind, by the id at the end of their keys."""
    found = [(key, value) for key, _, value in rows(root) if key.startswith(f"{kind}:")]
    return {last_part(key): json.loads(value) for key, value in found}


def check_outcomes(root: Path) -> None:
    """Every attempt of every page has ended once: in an outcome, or in its worker's silence."""
    logs = records(root, "logs")
    for page_id, status in records(root, "status").items():
        entries = logs.get(page_id, {"entries": []})["entries"]
        ends = Counter(
            entry["data"]["attempt"]
            for entry in entries
            if entry["step"] in ("done", "lease") or entry["level"] == "error"
        )
        assert ends == dict.fromkeys(range(1, status["attempts"] + 1), 1), (page_id, entries)


def check_verified(driver: Driver, root: Path) -> None:
    """Nothing is wrong."""
    verified = driver.document(root, "nimbus.batch.verify")
    assert verified["findings"] == []
    with load_project(root).open_store() as store:
        assert store.faults() == []


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


def make_fresh(driver: Driver, root: Path) -> None:
    """Nothing is stored yet."""
    write_maps(maps_of(root), 100)


def make_older(driver: Driver, root: Path) -> None:
    """An earlier batch has all pages; some are done, some failed, and most of them wait."""
    write_maps(maps_of(root), 100)
    worker = ("nimbus.worker", "--processor=processors:every_fifth_fails")
    assert driver.run(root, "nimbus.upload", "--limit=30").code == 0
    assert driver.run(root, *worker).code == 0
    assert driver.run(root, "nimbus.upload", f"--batch={only_batch(root)}").code == 0


def make_changed(driver: Driver, root: Path) -> None:
    """An earlier batch has all pages, and some maps have changed since."""
    make_older(driver, root)
    for at in range(0, 100, 2):
        path = f"dist/page-{at:03d}.html"
        write_map(maps_of(root), f"page-{at:03d}.json", a_map(path, head={"title": "Another"}))


def only_batch(root: Path) -> str:
    [batch_id] = records(root, "batch")
    return batch_id


UPLOADS: dict[str, tuple[Callable[[Driver, Path], None], tuple[str, ...], int]] = {
    "fresh": (make_fresh, (), 100),
    "older": (make_older, (), 100),
    "changed": (make_changed, ("--changed",), 50),
}


@pytest.mark.parametrize("kind", UPLOADS)
@rounds(5)
def test_an_upload_is_killed_and_run_again_as_it_was_typed(
    driver: Driver, places: Places, rng: random.Random, kind: str, number: int, size: int
) -> None:
    make, options, count = UPLOADS[kind]
    start = places.made(kind, lambda root: make(driver, root))
    command = ("nimbus.upload", *options)
    clean, within = places.unhurt(start, *command, CHUNK_PAGES=20)
    wanted, before = timeless(rows(clean)), set(records(start, "batch"))
    kills = Kills(driver, rng, size)
    while kills:
        root = places.copy(start)
        while kills and not has_ended(root, before):
            kills.run(root, *command, within=within, CHUNK_PAGES=20)
            if rng.random() < 0.5:
                break
        if not has_ended(root, before):
            new = set(records(root, "batch")) - before
            stored = sum(s["batch_id"] in new for s in records(root, "status").values())
            again = driver.document(root, *command, CHUNK_PAGES=20)
            assert again["uploaded"] == count - stored
            assert again["skipped"] == 100 - again["uploaded"]
            assert again["page_count"] == count
        assert timeless(rows(root)) == wanted
        check_verified(driver, root)
        shutil.rmtree(root)


def test_an_upload_that_goes_on_leaves_no_older_batch_behind_with_an_old_record(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had taken all of its pages, and was killed before its last write."""

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    older = upload(project, store, maps)
    with monkeypatch.context() as patch:
        patch.setattr(sending, "_close_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            upload(project, store, maps)
    assert upload(project, store, maps).resumed
    assert verify_batch(project, store, older.batch_id).findings == []


def has_ended(root: Path, before: set[str]) -> bool:
    """Whether the upload has written all: what was killed then was the rest of the process. (Run
    again it would be a second upload, which makes a second batch.)"""
    new = [batch for batch_id, batch in records(root, "batch").items() if batch_id not in before]
    return any(batch["status"] != "uploading" for batch in new)


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


def test_a_worker_stopped_past_its_lease_comes_too_late(driver: Driver, places: Places) -> None:
    """What it had in hand is another's by then; the other's outcomes stay."""

    root = places.copy(places.made("uploaded", lambda root: make_uploaded(driver, root)))
    lease = ("--lease=1", "--concurrency=3", "--json")
    slow = driver.start(root, "nimbus.worker", "--processor=processors:waits", *lease)
    deadline = time.monotonic() + PATIENCE
    while len(held := in_flight(root)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
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
    found = records(root, "status").items()
    return {page_id for page_id, status in found if status["status"] == "processing"}


def test_a_worker_that_lives_keeps_its_pages_however_short_the_lease(
    driver: Driver, places: Places
) -> None:
    root = places.copy(places.made("uploaded", lambda root: make_uploaded(driver, root)))
    running = driver.start(root, "nimbus.worker", "--processor=processors:waits", "--lease=0.45")
    lapsed, end = 0, time.monotonic() + 2
    while time.monotonic() < end:
        for status in records(root, "status").values():
            lapsed += status.get("processing", {}).get("lease", "T") < now_iso()
        time.sleep(0.01)
    (root / "go").touch()
    assert driver.wait(running).code == 0
    assert lapsed == 0


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
