"""The main job on Workers KV: real commands, real processes, Cloudflare's own local server.

Each test is a project of its own in a namespace of its own. Here is what holds for every store, as
``test_main_job`` has it; and what a store without transactions must hold besides.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nimbus_tasks.core.project import load_project
from tests.factories import invoke, start, write_maps

if TYPE_CHECKING:
    from tests.wrangler.server import Wrangler

pytest_plugins = ["tests.wrangler.server"]

PROCESSORS = '''
import time
from pathlib import Path
from nimbus_tasks.core.errors import ProcessorError

def some_fail(page, progress):
    """Fails the pages whose number ends in 7, until the file `mended` is there."""
    progress("look", 50)
    if page["source_path"].endswith("7.html") and not Path("mended").exists():
        raise ProcessorError("not yet mended", code="broken")
    return {"changes": 2, "confidence": 0.75, "optimization": {"title": "better"}}

def waits(page, progress):
    """Takes until the file `go` is there."""
    progress("waiting", 40)
    while not Path("go").exists():
        time.sleep(0.01)
    return {"changes": 1}

def slow(page, progress):
    time.sleep(0.05)
    return {"changes": 1}
'''
SOME_FAIL = ("nimbus.worker", "--processor=processors:some_fail")
STATES = ("uploaded", "queued", "processing", "done", "failed", "cancelled")
#: Against a hang only.
PATIENCE_SECONDS = 120.0


class Site:
    """A project, and the commands that are run on it."""

    def __init__(self, root: Path, ending: ExitStack) -> None:
        self.root = root
        self._ending = ending

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command, with the exit code that it is to have."""
        ran = invoke(self.root, *arguments)
        assert ran.returncode == code, (arguments, ran.returncode, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return ran

    def document(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command in the background; it is ended with the test."""
        process = start(self.root, *arguments)
        self._ending.callback(process.communicate)
        self._ending.callback(process.kill)
        return process

    def counts(self) -> dict[str, int]:
        """The counts of the latest batch, as another command of this directory sees them."""
        from nimbus_tasks.batch.status import view_batch

        project = load_project(self.root)
        with project.open_store() as store:
            return view_batch(project, store).tally.counts

    def until(self, condition: Callable[[dict[str, int]], bool]) -> None:
        """Wait for counts that another process brings about."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(counts := self.counts()):
            assert time.monotonic() < deadline, f"it did not happen in time: {counts}"
            time.sleep(0.1)

    def pages(self) -> dict[str, dict[str, Any]]:
        """The pages of the report, by path."""
        return {page["path"]: page for page in self.document("nimbus.batch.report")["pages"]}

    def touch(self, name: str) -> None:
        (self.root / name).touch()


def counted(**states: int) -> dict[str, int]:
    return {state: states.get(state, 0) for state in STATES}


@pytest.fixture
def make(wrangler: Wrangler, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes the project, with so many maps."""
    with ExitStack() as ending:

        def made(maps: int, queue: str = "keys") -> Site:
            (tmp_path / "processors.py").write_text(PROCESSORS)
            site = Site(tmp_path, ending)
            namespace = wrangler.new_namespace()
            where = (f"--namespace-id={namespace}", f"--api-base={wrangler.prefix}")
            site.run("nimbus.init", "--store=cloudflare", *where, f"--queue={queue}")
            write_maps(tmp_path / ".nimbus" / "maps", maps)
            return site

        yield made


@pytest.mark.parametrize("queue", ["keys", "document"])
def test_the_main_job(make: Callable[..., Site], queue: str) -> None:
    """Upload, work, fail, report, retry, end well; all commands say the same of it."""
    site = make(maps=40, queue=queue)
    broken = {f"dist/page-0{tens}7.html" for tens in range(4)}

    uploaded = site.document("nimbus.upload")
    assert (uploaded["uploaded"], uploaded["status"]) == (40, "queued")
    worked = site.document(*SOME_FAIL)
    assert (worked["done"], worked["failed"], worked["refused"]) == (36, 4, 0)

    status = site.document("nimbus.batch.status", "--batch=latest")
    [listed] = site.document("nimbus.batch.list")["batches"]
    metrics = site.document("nimbus.batch.metrics")
    report = site.document("nimbus.batch.report")
    shown = site.run("nimbus.batch.monitor", "--once").stdout
    assert status["counts"] == report["counts"] == counted(done=36, failed=4)
    assert status["summary"] == report["summary"] == listed["summary"]
    assert {status["status"], report["status"], listed["status"], metrics["status"]} == {
        "partially_completed"
    }
    assert metrics["success_rate"] == pytest.approx(90)
    assert metrics["total_changes"] == 72
    assert "not yet mended" in shown
    failed = {page["path"]: page for page in report["pages"] if page["status"] == "failed"}
    assert failed.keys() == broken
    assert {page["code"] for page in failed.values()} == {"broken"}
    assert all(page["log_entries"] for page in failed.values())
    site.run("nimbus.batch.wait", code=3)
    told = site.run("nimbus.batch.report", "--exit-status", code=3)
    assert all(path in told.stdout for path in broken)

    retried = site.document("nimbus.batch.retry")
    assert set(retried["requeued"]) == {page["page_id"] for page in failed.values()}
    status = site.document("nimbus.batch.status", "--batch=latest")
    assert (status["status"], status["counts"]) == ("retrying", counted(done=36, queued=4))
    site.touch("mended")
    site.run(*SOME_FAIL, "--exit-status")
    site.run("nimbus.batch.wait")
    pages = site.pages()
    assert {path for path, page in pages.items() if page["attempts"] == 2} == broken
    assert {page["status"] for page in pages.values()} == {"done"}

    assert site.document("nimbus.batch.retry")["requeued"] == []
    again = site.document("nimbus.upload", "--changed")
    assert (again["batch_id"], again["uploaded"], again["skipped"]) == (None, 0, 40)
    verified = site.document("nimbus.batch.verify")
    assert (verified["ok"], verified["findings"]) == (True, [])
    assert len(site.document("nimbus.batch.list")["batches"]) == 1


def test_a_cancel_in_the_middle_lets_pages_in_flight_finish(make: Callable[..., Site]) -> None:
    """What a worker has claimed ahead, and no thread has begun, it gives back."""
    site = make(maps=60)
    site.run("nimbus.upload")
    worker = site.start("nimbus.worker", "--processor=processors:waits", "--concurrency=2")
    site.until(lambda counts: counts["processing"] >= 2)
    cancelled = site.document("nimbus.batch.cancel", "--batch=latest", "--reason=enough")
    assert cancelled["status"] == "cancelling"
    assert cancelled["cancelled"] + cancelled["in_flight"] == 60
    assert cancelled["cancelled"] >= 30
    site.until(lambda counts: counts["processing"] == 2)
    site.touch("go")
    worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    assert site.counts() == counted(done=2, cancelled=58)
    site.run("nimbus.batch.wait", code=7)
    assert site.document("nimbus.batch.verify")["findings"] == []

    assert len(site.document("nimbus.batch.retry", "--include-cancelled")["requeued"]) == 58
    site.run("nimbus.worker", "--exit-status")
    site.run("nimbus.batch.wait")


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_loses_nothing(make: Callable[..., Site], times: int) -> None:
    """Once: pages in flight finish. Twice: they go back to the queue at once."""
    site = make(maps=40)
    site.run("nimbus.upload")
    worker = site.start("nimbus.worker", "--processor=processors:waits", "--concurrency=2")
    site.until(lambda counts: counts["processing"] >= 2)
    worker.send_signal(signal.SIGINT)
    assert worker.stderr is not None
    assert "Stopping" in worker.stderr.readline()  # two signals at once would be one
    if times == 2:
        worker.send_signal(signal.SIGINT)
    else:
        site.touch("go")
    err = worker.communicate(timeout=PATIENCE_SECONDS)[1]
    assert worker.returncode == 130
    assert "Traceback" not in err
    assert site.counts() == (counted(done=2, queued=38) if times == 1 else counted(queued=40))
    site.touch("go")
    site.run("nimbus.worker", "--exit-status")
    assert {page["attempts"] for page in site.pages().values()} == {1}


def test_a_killed_worker_is_recovered_within_its_lease(make: Callable[..., Site]) -> None:
    site = make(maps=40)
    site.run("nimbus.upload")
    worker = site.start("nimbus.worker", "--processor=processors:waits", "--lease=3")
    site.until(lambda counts: counts["processing"] >= 4)
    worker.kill()
    worker.wait()
    claimed = site.counts()["processing"]
    site.run(*SOME_FAIL, "--exit-status", code=3)
    pages = site.pages()
    assert {page["status"] for page in pages.values()} == {"done", "failed"}
    attempts = [page["attempts"] for page in pages.values()]
    assert (attempts.count(1), attempts.count(2)) == (40 - claimed, claimed)
    assert site.document("nimbus.batch.verify")["findings"] == []


def test_a_worker_and_a_monitor_at_once(make: Callable[..., Site]) -> None:
    """The monitor sees the batch begin and end; no page ever comes back from its end."""
    site = make(maps=120)
    site.run("nimbus.upload")
    monitor = site.start("nimbus.batch.monitor", "--interval=0.3", "--json")
    assert monitor.stdout is not None
    first = monitor.stdout.readline()  # it looks before the worker begins
    worker = site.start("nimbus.worker", "--processor=processors:slow")
    out, err = worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0, out + err
    out, err = monitor.communicate(timeout=PATIENCE_SECONDS)
    assert (monitor.returncode, err) == (0, "")
    looks = [json.loads(line) for line in (first, *out.splitlines())]
    done = [look["counts"]["done"] for look in looks]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert all(sum(look["counts"].values()) == 120 for look in looks)
    assert [look["finished"] for look in looks] == [False] * (len(looks) - 1) + [True]
    assert site.counts() == counted(done=120)
    assert {page["attempts"] for page in site.pages().values()} == {1}
