"""A store that is deleted or replaced under a command that runs ends it, and is not waited for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.store import Entry
from tests.factories import invoke, start, upload, write_maps
from tests.faults.places import assert_refused, counts, needs_posix

pytestmark = needs_posix
#: Much longer than anything here takes, so that a slow machine fails no test.
PATIENCE = 60.0


def delete(project: Project) -> None:
    for path in project.folder.glob("kv.sqlite3*"):
        path.unlink()


def delete_the_folder(project: Project) -> None:
    shutil.rmtree(project.folder)


def replace(project: Project) -> None:
    """By a copy, as whoever restores a backup does."""
    copy = project.folder / "copy"
    shutil.copy(project.store_path, copy)
    copy.replace(project.store_path)


@contextmanager
def running(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start(root, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_it_has_the_store_open(process: subprocess.Popen[str], project: Project) -> None:
    deadline = time.monotonic() + PATIENCE
    shared = str(project.store_path) + "-shm"
    while time.monotonic() < deadline and process.poll() is None:
        if shared in Path(f"/proc/{process.pid}/maps").read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"it never opened the store: {process.communicate()}")


@pytest.mark.skipif(sys.platform != "linux", reason="who has a file open is read from /proc")
@pytest.mark.parametrize(
    ("arguments", "gone", "code"),
    [
        # It goes on trying for as long as it is let: the store may be put back.
        (("nimbus.batch.monitor", "--interval=0.2", "--timeout=10"), delete, 6),
        (("nimbus.batch.monitor", "--interval=0.2", "--timeout=10", "--json"), replace, 6),
        (("nimbus.batch.wait", "--interval=0.2"), replace, 5),
        (("nimbus.batch.wait", "--interval=0.2"), delete_the_folder, 5),
        (("nimbus.worker", "--forever", "--batch=latest"), delete, 5),
        (("nimbus.worker", "--forever", "--batch=latest"), replace, 5),
    ],
)
def test_who_watches_a_store_that_is_gone_is_told(
    project: Project,
    maps: Path,
    arguments: tuple[str, ...],
    gone: Callable[[Project], None],
    code: int,
) -> None:
    with project.open_store(create=True) as store:
        upload(project, store, maps)
    with running(project.root, *arguments) as process:
        wait_until_it_has_the_store_open(process, project)
        gone(project)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "was deleted or replaced while it was in use" in out + err
    assert code == 6 or "Put it back, or upload again." in err
    assert "Traceback" not in err


def test_after_a_loss_an_upload_makes_all_anew(project: Project, maps: Path) -> None:
    assert invoke(project.root, "nimbus.upload").returncode == 0
    delete(project)
    assert_refused(invoke(project.root, "nimbus.worker"), "there is no store", "nimbus.upload")
    told = invoke(project.root, "nimbus.doctor")
    assert told.returncode == 0
    assert "no store yet; the first upload makes" in told.stdout
    write_maps(maps, 3)
    assert invoke(project.root, "nimbus.upload", "nimbus.worker").returncode == 0
    assert counts(project) == {"done": 10}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_journal_that_is_gone_is_made_anew_and_one_of_others_is_kept(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "recent-0.sqlite3"
    journal = Journal(path)
    journal.add([Entry("status:a", "{}", {})], [], "2026-11-24T00:00:00Z")
    for name in tmp_path.glob("recent-0.sqlite3*"):
        name.unlink()
    if replaced:
        other = Journal(path)
        other.add([Entry("status:b", "{}", {})], [], "2026-11-24T00:00:01Z")
        other.close()
    journal.add([], ["status:c"], "2026-11-24T00:00:02Z")  # notices it
    journal.add([Entry("status:d", "{}", {})], [], "2026-11-24T00:00:03Z")
    journal.close()

    again = Journal(path)
    found = again.get_many(f"status:{letter}" for letter in "abcd").keys()
    again.close()
    assert found == ({"status:b", "status:d"} if replaced else {"status:d"})
