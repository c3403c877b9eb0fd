"""A crowd at one store: everybody begins at the same moment, and nobody is in another's way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.keys import logs_prefix, status_prefix
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload.folder import check_folder
from nimbus_tasks.upload.sending import upload_maps
from tests.factories import a_map, environment_for, failing, invoke, invoke_command, work, write_map

PROCESSORS = """
import time

def takes_a_while(page, progress):
    progress("half", 50)
    time.sleep(0.01)
    return {"changes": 1, "confidence": 0.5}
"""
SENT, TO_RETRY, TO_CANCEL = 500, 60, 150
WORKERS, MONITORS = 8, 3
PATIENCE = 120.0


class Crowd:
    """Commands in processes of their own that begin together when :meth:`go` is called."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._running: list[tuple[str, subprocess.Popen[str], Path]] = []
        self._gate = folder / "go"

    def add(self, *arguments: str) -> None:
        """A command that waits for the others."""
        waits = self._folder / f"waits-{len(self._running)}.json"
        interpreter = invoke_command(self._root, *arguments)[0]
        process = subprocess.Popen(
            [interpreter, "-m", "tests.kills.driver", str(waits), str(self._gate), *arguments],
            cwd=self._root,
            env=environment_for(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._running.append((arguments[0], process, waits))

    def go(self) -> dict[str, list[str]]:
        """Let them begin; what they have printed, by command, when all have ended."""
        self._gate.touch()
        printed: dict[str, list[str]] = {}
        waits: list[tuple[float, str]] = []
        for name, process, file in self._running:
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, (name, err)
            assert "locked" not in out + err, (name, err)
            assert "Traceback" not in err, (name, err)
            printed.setdefault(name, []).append(out)
            waits += [(wait, name) for wait in json.loads(file.read_text())]
        waits.sort()
        worst, whose = waits[-1]
        median, late = (waits[len(waits) * part // 100][0] for part in (50, 99))
        print(
            f"{len(waits):,} writes of {len(self._running)} processes; waited"
            f" {1000 * median:.1f} ms in the middle, {1000 * late:.0f} ms at 99 %,"
            f" {1000 * worst:.0f} ms at the worst ({whose})",
            file=sys.stderr,
        )
        return printed

    def close(self) -> None:
        """End what still runs."""
        for _, process, _ in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def crowd(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    made = Crowd(project.root, tmp_path_factory.mktemp("crowd"))
    yield made
    made.close()


def send(project: Project, store: Store, name: str, count: int) -> str:
    """A batch of ``count`` pages of a folder of its own."""
    folder = folder_of(project, name, count)
    sent = upload_maps(project, store, check_folder(folder, project.project_id), folder)
    assert sent.batch_id
    return sent.batch_id


def folder_of(project: Project, name: str, count: int) -> Path:
    folder = project.folder / name
    for number in range(count):
        write_map(folder, f"{number:03d}.json", a_map(f"{name}/page-{number:03d}.html"))
    return folder


def document(root: Path, *arguments: str) -> Any:
    ran = invoke(root, *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def outcomes_are_one_an_attempt(store: Store, project_id: str) -> None:
    logs = values(store, logs_prefix(project_id))
    for page_id, status in values(store, status_prefix(project_id)).items():
        entries = logs[page_id]["entries"] if page_id in logs else []
        ends = Counter(
            entry["data"]["attempt"]
            for entry in entries
            if entry["step"] in ("done", "lease") or entry["level"] == "error"
        )
        assert ends == dict.fromkeys(range(1, status["attempts"] + 1), 1), (page_id, entries)


def values(store: Store, prefix: str) -> dict[str, Any]:
    found = store.get_many([info.key for info in store.scan(prefix)])
    return {key.rpartition(":")[2]: json.loads(entry.value) for key, entry in found.items()}


def test_an_uploader_workers_monitors_a_retry_and_a_cancel_at_once(
    project: Project, crowd: Crowd, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project.root
    (root / "processors.py").write_text(PROCESSORS)
    folder = folder_of(project, "sent", SENT)
    with project.open_store(create=True) as store:
        to_retry = send(project, store, "retried", TO_RETRY)
        paths = [f"retried/page-{number:03d}.html" for number in range(TO_RETRY)]
        work(project, store, failing(*paths))
        to_cancel = send(project, store, "cancelled", TO_CANCEL)

    crowd.add("nimbus.upload", f"--folder={folder}", "--json")
    crowd.add("nimbus.batch.retry", f"--batch={to_retry}", "--json")
    crowd.add("nimbus.batch.cancel", f"--batch={to_cancel}", "--json")
    for _ in range(WORKERS):
        crowd.add("nimbus.worker", "--processor=processors:takes_a_while", "--json")
    for batch in (to_retry, to_cancel, "latest"):
        crowd.add("nimbus.batch.monitor", f"--batch={batch}", "--interval=0.05", "--json")
    with capsys.disabled():
        printed = crowd.go()

    [uploaded, retried, cancelled] = (
        json.loads(printed[f"nimbus.{name}"][0])
        for name in ("upload", "batch.retry", "batch.cancel")
    )
    assert uploaded["uploaded"] == SENT
    assert len(retried["requeued"]) == TO_RETRY
    rest = document(root, "nimbus.worker")  # what came when all workers had seen an empty queue
    worked = [json.loads(out) for out in printed["nimbus.worker"]] + [rest]
    assert {one["refused"] + one["failed"] for one in worked} == {0}

    said = {
        batch: document(root, "nimbus.batch.status", f"--batch={batch}")
        for batch in (uploaded["batch_id"], to_retry, to_cancel)
    }
    counts = {batch: one["counts"] for batch, one in said.items()}
    assert counts[uploaded["batch_id"]]["done"] == SENT
    assert counts[to_retry]["done"] == TO_RETRY
    ended = counts[to_cancel]
    # On a busy machine the workers may have been quicker; the cancel has said which it was.
    came_too_late = cancelled["status"] == "completed"
    status = "completed" if came_too_late else "cancelled"
    assert (said[to_cancel]["status"], ended["done"] + ended["cancelled"]) == (status, TO_CANCEL)
    assert not (came_too_late and ended["cancelled"])
    assert ended["cancelled"] == cancelled["cancelled"]
    assert sum(one["done"] for one in worked) == SENT + TO_RETRY + ended["done"]
    for batch in said:
        assert document(root, "nimbus.batch.verify", f"--batch={batch}")["findings"] == []
    with project.open_store() as store:
        outcomes_are_one_an_attempt(store, project.project_id)

    assert len(printed["nimbus.batch.monitor"]) == MONITORS
    for out in printed["nimbus.batch.monitor"]:
        seen = [json.loads(line) for line in out.splitlines()]
        assert [one["finished"] for one in seen] == [False] * (len(seen) - 1) + [True]
        for one in seen:
            assert sum(one["counts"].values()) == one["page_count"]
