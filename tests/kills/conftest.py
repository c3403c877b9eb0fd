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
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.keys import last_part
from nimbus_tasks.core.project import load_project, new_project, save_project
from tests.kills.driver import Driver, Ran

KILLS = int(os.environ.get("NIMBUS_KILLS", "60"))

SEED = os.environ.get("NIMBUS_SEED") or (
    "1" if os.environ.get("CI") else str(time.time_ns() % 10**6)
)

#: Of a test: several of them are shared among processes that test.
KILLS_A_TEST = 10

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


def only_batch(root: Path) -> str:
    [batch_id] = records(root, "batch")
    return batch_id
