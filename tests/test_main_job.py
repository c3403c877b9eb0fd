"""The main job as a person does it: real commands, real processes, one project.

Each test is a paragraph of what the project promises; the figures of all commands must agree.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.project import Project, load_project
from tests.factories import (
    REPOSITORY,
    invoke,
    start,
    write_maps,
)

PROCESSORS = '''
import threading, time
from nimbus_tasks.core.errors import ProcessorError

count, lock, seen = 0, threading.Lock(), {}

def every_seventh_fails(page, progress):
    """Fails every seventh page it sees, and the page of one name twice."""
    global count
    progress("look", 50)
    with lock:
        count += 1
        number = count
    path = page["source_path"]
    if number % 7 == 0:
        raise ProcessorError("every seventh", code="seventh")
    if path.endswith("page-003.html") and not second_retry():
        raise ValueError("this one twice")
    return {"changes": 2, "confidence": 0.75, "optimization": {"number": number}}

def second_retry():
    from pathlib import Path
    return Path("second").exists()

def fine(page, progress):
    return {"changes": 1, "confidence": 0.5}

def waits(page, progress):
    """Takes until the file `go` is there."""
    from pathlib import Path
    progress("waiting", 40)
    while not Path("go").exists():
        time.sleep(0.01)
    return {"changes": 1}
'''


#: Against a hang only.
PATIENCE_SECONDS = 120.0


@pytest.fixture
def root(project: Project) -> Path:
    """A project's directory with processors and forty maps."""
    (project.root / "processors.py").write_text(PROCESSORS)
    write_maps(project.folder / "maps", 40)
    return project.root


def document(root: Path, *arguments: str) -> Any:
    """What a command prints as JSON."""
    ran = invoke(root, *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands, and ends at the end of the test what still runs."""
    running: list[subprocess.Popen[str]] = []

    def begin(root: Path, *arguments: str) -> subprocess.Popen[str]:
        running.append(start(root, *arguments))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def counts(root: Path) -> dict[str, int]:
    """The counts of the latest batch, read from the store."""
    from nimbus_tasks.batch.status import view_batch

    project = load_project(root)
    with project.open_store() as store:
        return view_batch(project, store).tally.counts


def test_the_sample_project_goes_through_in_one_line(tmp_path: Path) -> None:
    project = load_project(REPOSITORY)
    folder = tmp_path / "site"
    folder.mkdir()
    ran = invoke(
        folder,
        "nimbus.upload",
        f"--folder={project.folder / 'maps'}",
        "nimbus.worker",
        "nimbus.batch.report",
        "--exit-status",
    )
    assert ran.returncode == 0, ran.stderr
    assert "22 pages done, 0 failed" in ran.stdout
    [report] = (folder / ".nimbus" / "reports").glob("batch_*_report.json")
    assert len(json.loads(report.read_text())["pages"]) == 22


def test_all_commands_say_the_same_of_a_batch(root: Path) -> None:
    uploaded = document(root, "nimbus.upload")
    worked = document(root, "nimbus.worker", "--processor=processors:every_seventh_fails")
    status = document(root, "nimbus.batch.status", "--batch=latest")
    listed = document(root, "nimbus.batch.list")["batches"]
    metrics = document(root, "nimbus.batch.metrics")
    report = document(root, "nimbus.batch.report")

    failed = status["counts"]["failed"]
    assert failed >= 5
    assert status["counts"]["done"] == 40 - failed
    assert sum(status["counts"].values()) == status["page_count"] == uploaded["page_count"] == 40
    assert (worked["done"], worked["failed"]) == (40 - failed, failed)
    assert status["summary"] == report["summary"] == listed[0]["summary"]
    assert report["counts"] == status["counts"]
    assert sum(page["status"] == "failed" for page in report["pages"]) == failed
    assert metrics["success_rate"] == pytest.approx(100 * (40 - failed) / 40)
    assert metrics["total_changes"] == sum(page["changes"] or 0 for page in report["pages"])
    assert {status["status"], report["status"], listed[0]["status"], metrics["status"]} == {
        "partially_completed"
    }


def test_retry_brings_a_batch_with_failures_to_its_end(root: Path) -> None:
    worker = ("nimbus.worker", "--processor=processors:every_seventh_fails")
    assert invoke(root, "nimbus.upload", *worker).returncode == 0
    assert invoke(root, "nimbus.batch.wait").returncode == 3
    assert invoke(root, "nimbus.batch.report", "--exit-status").returncode == 3
    first = document(root, "nimbus.batch.report")
    failed = {page["path"]: page for page in first["pages"] if page["status"] == "failed"}
    assert all(page["error"] and page["code"] for page in failed.values())
    assert failed["dist/page-003.html"]["code"] == "ValueError"

    requeued = document(root, "nimbus.batch.retry")["requeued"]
    assert set(requeued) == {page["page_id"] for page in failed.values()}
    assert document(root, "nimbus.batch.status", "--batch=latest")["status"] == "retrying"
    invoke(root, *worker)  # page-003 fails for the second time
    (root / "second").touch()
    for _ in range(3):
        document(root, "nimbus.batch.retry")
        invoke(root, *worker)
    assert invoke(root, "nimbus.batch.wait").returncode == 0

    pages = {page["path"]: page for page in document(root, "nimbus.batch.report")["pages"]}
    assert pages["dist/page-003.html"]["attempts"] == 3
    assert {page["attempts"] for path, page in pages.items() if path not in failed} == {1}
    assert document(root, "nimbus.batch.retry")["requeued"] == []


def test_two_workers_an_uploader_and_a_monitor_at_once(
    project: Project, started: Callable[..., subprocess.Popen[str]]
) -> None:
    root = project.root
    (root / "processors.py").write_text(PROCESSORS)
    write_maps(project.folder / "maps", 3000)
    uploader = started(root, "nimbus.upload")
    until(lambda: any(b"batch_" in p.read_bytes() for p in project.folder.glob("kv.sqlite3*")))
    others = [
        started(root, "nimbus.worker", "--processor=processors:fine"),
        started(root, "nimbus.worker", "--processor=processors:fine"),
        started(root, "nimbus.batch.monitor", "--interval=0.05"),
    ]
    for process in (uploader, *others):
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        assert "locked" not in out + err
        assert "Traceback" not in err
    assert counts(root) == {
        "uploaded": 0, "queued": 0, "processing": 0, "done": 3000, "failed": 0, "cancelled": 0
    }  # fmt: skip
    report = document(root, "nimbus.batch.report")
    assert {page["attempts"] for page in report["pages"]} == {1}
    assert document(root, "nimbus.batch.verify")["ok"]


def test_a_cancel_in_the_middle_lets_pages_in_flight_finish(
    root: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    invoke(root, "nimbus.upload")
    worker = started(root, "nimbus.worker", "--processor=processors:waits", "--concurrency=3")
    until(lambda: counts(root)["processing"] == 3)
    cancelled = document(root, "nimbus.batch.cancel", "--batch=latest", "--reason=enough")
    assert cancelled["status"] == "cancelling"
    assert (cancelled["cancelled"], cancelled["in_flight"]) == (37, 3)
    (root / "go").touch()
    assert worker.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert counts(root)["done"] == 3
    assert counts(root)["cancelled"] == 37
    assert invoke(root, "nimbus.batch.wait").returncode == 7

    assert document(root, "nimbus.batch.retry")["requeued"] == []
    assert len(document(root, "nimbus.batch.retry", "--include-cancelled")["requeued"]) == 37
    assert invoke(root, "nimbus.worker").returncode == 0
    assert invoke(root, "nimbus.batch.wait").returncode == 0


def test_step_and_progress_of_a_page_are_seen_by_others_while_it_runs(
    root: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    invoke(root, "nimbus.upload", "--limit=1")
    started(root, "nimbus.worker", "--processor=processors:waits")

    def is_seen() -> bool:
        shown = invoke(root, "nimbus.batch.monitor", "--once").stdout
        return "waiting" in shown and "40%" in shown

    until(is_seen)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_loses_nothing(
    root: Path, started: Callable[..., subprocess.Popen[str]], times: int
) -> None:
    """Once: pages in flight finish. Twice: they go back to the queue at once."""
    invoke(root, "nimbus.upload")
    worker = started(root, "nimbus.worker", "--processor=processors:waits", "--concurrency=2")
    until(lambda: counts(root)["processing"] == 2)
    worker.send_signal(signal.SIGINT)
    if times == 2:
        assert worker.stderr is not None
        assert "Stopping" in worker.stderr.readline()  # two signals at once would be one
        worker.send_signal(signal.SIGINT)
    else:
        (root / "go").touch()
    err = worker.communicate(timeout=PATIENCE_SECONDS)[1]
    assert worker.returncode == 130
    assert "Traceback" not in err
    assert counts(root)["processing"] == 0
    assert counts(root)["done"] == (2 if times == 1 else 0)
    (root / "go").touch()
    assert invoke(root, "nimbus.worker", "--exit-status").returncode == 0
    report = document(root, "nimbus.batch.report")
    assert {page["attempts"] for page in report["pages"]} == {1}


def test_a_killed_worker_is_recovered_within_its_lease(
    root: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    invoke(root, "nimbus.upload")
    worker = started(root, "nimbus.worker", "--processor=processors:waits", "--lease=1")
    until(lambda: counts(root)["processing"] == 4)
    worker.kill()
    worker.wait()
    assert invoke(root, "nimbus.worker", "--exit-status").returncode == 0
    report = document(root, "nimbus.batch.report")
    assert report["counts"]["done"] == 40
    assert sorted(page["attempts"] for page in report["pages"]) == [1] * 36 + [2] * 4


def test_a_second_upload_of_unchanged_pages_sends_nothing(root: Path) -> None:
    document(root, "nimbus.upload")
    again = document(root, "nimbus.upload", "--changed")
    assert (again["batch_id"], again["uploaded"], again["skipped"]) == (None, 0, 40)
    assert len(document(root, "nimbus.batch.list")["batches"]) == 1


def test_a_store_deleted_under_a_worker_ends_it_with_a_line(root: Path) -> None:
    write_maps(root / ".nimbus" / "maps", 5)
    (root / "deletes.py").write_text(
        "from pathlib import Path\n\n\ndef process(page, progress):\n"
        "    for path in Path('.nimbus').glob('kv.sqlite3*'):\n        path.unlink()\n"
        "    return {}\n"
    )
    assert invoke(root, "nimbus.upload").returncode == 0
    ran = invoke(root, "nimbus.worker", "--processor=deletes:process", "--concurrency=1")
    assert ran.returncode == 5
    assert "was deleted or replaced" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert invoke(root, "nimbus.upload", "nimbus.worker").returncode == 0
