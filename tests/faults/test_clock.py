"""A clock that is set back or forward by an hour: nothing is lost, nobody waits for an hour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from tests.factories import REPOSITORY, invoke, project_on_kv
from tests.faults.places import assert_sound, counts
from tests.kv.kv_server import KVServer

HOUR = 3600
#: In a child: the wall clock is as many seconds off as the file says at the moment.
SHIFTED = """
import datetime as module, os, time
from pathlib import Path

_file, _time, _Real = Path(os.environ["CLOCK_FILE"]), time.time, module.datetime


def _off():
    return float(_file.read_text() or 0)


class datetime(_Real):
    @classmethod
    def now(cls, tz=None):
        return _Real.fromtimestamp(_time() + _off(), tz)


time.time = lambda: _time() + _off()
module.datetime = datetime
"""


class Clock:
    """The clock of the commands; :meth:`set` puts it off by so many seconds."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self._path = folder / "shift"
        self._path.mkdir()
        (self._path / "sitecustomize.py").write_text(SHIFTED)
        self.set(0)

    def set(self, seconds: float) -> None:
        self.file.write_text(str(seconds))

    def invoke(self, root: Path, *arguments: str, code: int = 0) -> str:
        path = f"{self._path}:{REPOSITORY}"
        ran = invoke(root, *arguments, PYTHONPATH=path, CLOCK_FILE=str(self.file))
        assert ran.returncode == code, (arguments, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return ran.stdout


@pytest.fixture
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock"))


def created(listed: str) -> str:
    text: str = json.loads(listed)["batches"][0]["created"]
    return text


def test_the_clock_of_the_commands_is_the_tests(project: Project, maps: Path, clock: Clock) -> None:
    clock.invoke(project.root, "nimbus.upload")
    now = created(clock.invoke(project.root, "nimbus.batch.list", "--json"))
    clock.set(HOUR)
    clock.invoke(project.root, "nimbus.upload")
    assert created(clock.invoke(project.root, "nimbus.batch.list", "--json"))[:13] > now[:13]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_between_any_two_commands(
    project: Project, maps: Path, clock: Clock, jump: int
) -> None:
    (project.root / "half.py").write_text(
        "def process(page, progress):\n"
        "    if page['source_path'] < 'dist/page-005.html':\n        raise ValueError('no')\n"
        "    return {'changes': 1}\n"
    )
    for offset, command in (
        (0, ["nimbus.upload"]),
        (jump, ["nimbus.worker", "--processor=half:process", "--max-attempts=1"]),
        (0, ["nimbus.batch.report", "nimbus.batch.metrics", "nimbus.batch.monitor", "--once"]),
        (jump, ["nimbus.batch.retry", "nimbus.batch.status"]),
        (0, ["nimbus.worker", "nimbus.batch.wait", "--timeout=30", "nimbus.batch.verify"]),
    ):
        clock.set(offset)
        clock.invoke(project.root, *command)
    assert counts(project) == {"done": 10}
    assert_sound(project)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_under_a_worker(project: Project, maps: Path, clock: Clock, jump: int) -> None:
    """Its leases are of the time before, and every page still has one outcome and one attempt."""
    (project.root / "jumps.py").write_text(
        "import time\nfrom pathlib import Path\n\n\n"
        "def process(page, progress):\n"
        f"    Path({str(clock.file)!r}).write_text('{jump}')\n"
        "    time.sleep(0.1)\n    return {'changes': 1}\n"
    )
    clock.invoke(project.root, "nimbus.upload")
    worked = json.loads(
        clock.invoke(project.root, "nimbus.worker", "--processor=jumps:process", "--json")
    )
    assert (worked["done"], worked["failed"], worked["refused"]) == (10, 0, 0)
    assert counts(project) == {"done": 10}
    report = json.loads(clock.invoke(project.root, "nimbus.batch.report", "--json"))
    assert {page["attempts"] for page in report["pages"]} == {1}
    assert all(page["duration_ms"] < 60_000 for page in report["pages"])
    assert_sound(project)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_what_a_killed_worker_held_comes_back_whatever_its_clock_said(
    project: Project, maps: Path, clock: Clock, jump: int
) -> None:
    (project.root / "dies.py").write_text(
        "import os\n\n\ndef process(page, progress):\n    os._exit(9)\n"
    )
    clock.invoke(project.root, "nimbus.upload")
    clock.set(jump)
    clock.invoke(project.root, "nimbus.worker", "--processor=dies:process", "--lease=1", code=9)
    clock.set(0)
    clock.invoke(project.root, "nimbus.worker", "--lease=1")
    assert counts(project) == {"done": 10}
    assert_sound(project)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_between_commands_on_cloudflare(tmp_path: Path, clock: Clock, jump: int) -> None:
    with KVServer() as server:
        project_on_kv(tmp_path, server.namespace, server.prefix, maps=3)
        clock.invoke(tmp_path, "nimbus.upload")
        clock.set(jump)
        clock.invoke(tmp_path, "nimbus.worker")
        clock.set(0)
        status = clock.invoke(tmp_path, "nimbus.batch.status", "--batch=latest", "--json")
        assert json.loads(status)["counts"]["done"] == 3
        clock.invoke(tmp_path, "nimbus.batch.verify")
