"""A store that is no store any more: a line that says what it is, exit code 5, nothing touched."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project, new_project, save_project
from tests.factories import invoke, write_maps
from tests.faults.places import assert_refused, assert_sound, counts, needs_posix, task

pytestmark = needs_posix
BACKUP = "Move it away and upload again, or restore it from a backup."
ANEW = "Move it away; the next upload makes a new store."
LINK = "Bring back what it leads to, or remove the link and upload again."


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def half_written(path: Path) -> None:
    """The size is right, and what should be in the second half has never arrived."""
    size = path.stat().st_size
    os.truncate(path, size // 2 // 4096 * 4096)
    os.truncate(path, size)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("unmounted/kv.sqlite3")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def run_sql(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute(statement)

    return spoil


SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cut in half": (lambda p: os.truncate(p, p.stat().st_size // 2), "is damaged", BACKUP),
    "cut in its first page": (lambda p: os.truncate(p, 1000), "is damaged", BACKUP),
    "half written": (half_written, "is damaged", BACKUP),
    "garbage header": (lambda p: overwrite(p, 0, b"\x5a" * 100), "is damaged", BACKUP),
    "garbage in the middle": (
        lambda p: overwrite(p, 8192, b"\xa5" * (p.stat().st_size - 8192)),
        "is damaged",
        BACKUP,
    ),
    "a table is gone": (run_sql("DROP TABLE vals"), "is damaged", BACKUP),
    "a directory": (directory, "that is no file", ANEW),
    "a pipe": (pipe, "that is no file", ANEW),
    "a link to nowhere": (dead_link, "is a link to unmounted/kv.sqlite3", LINK),
    "a link to itself": (link_to_itself, "is a link to kv.sqlite3", LINK),
    "newer": (
        run_sql("PRAGMA user_version = 2"),
        "was written by a newer nimbus-tasks",
        "pip install --upgrade nimbus-tasks",
    ),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a batch of 100 queued pages."""
    root = tmp_path_factory.mktemp("template")
    save_project(new_project(root, project_id="proj_0123456789ab"))
    write_maps(root / ".nimbus" / "maps", 100)
    assert invoke(root, "nimbus.upload").returncode == 0
    return root


@pytest.fixture
def uploaded(template: Path, project: Project) -> Project:
    shutil.copytree(template, project.root, dirs_exist_ok=True)
    return project


def content(path: Path) -> object:
    """What lies there, in a form that a change changes."""
    if path.is_symlink():
        return path.readlink()
    return path.read_bytes() if path.is_file() else path.lstat().st_mode


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_store_is_named_and_left_alone(uploaded: Project, kind: str) -> None:
    spoil, words, cure = SPOILED[kind]
    path, root = uploaded.store_path, uploaded.root
    good = path.read_bytes()
    spoil(path)
    spoiled = content(path)

    assert_refused(invoke(root, "nimbus.worker"), words, cure, str(path))
    doctor = invoke(root, "nimbus.doctor")
    assert doctor.returncode == 5
    assert "Traceback" not in doctor.stderr
    assert words in doctor.stdout
    assert f"→ {cure}" in doctor.stdout or f"→ Update it: {cure}" in doctor.stdout
    assert content(path) == spoiled

    # The cure is what the advice says: from a backup all is there again.
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_bytes(good)
    assert invoke(root, "nimbus.worker").returncode == 0
    assert counts(uploaded) == {"done": 100}
    assert_sound(uploaded)


@pytest.mark.parametrize(
    "command",
    [
        "upload --changed",
        "batch.list",
        "batch.status",
        "batch.monitor --once",
        "batch.wait",
        "batch.report",
        "batch.metrics",
        "batch.retry",
        "batch.cancel --batch=latest",
        "batch.verify --repair",
    ],
)
def test_every_command_refuses_a_store_that_is_cut_off(uploaded: Project, command: str) -> None:
    os.truncate(uploaded.store_path, 1000)
    spoiled = uploaded.store_path.read_bytes()
    assert_refused(invoke(uploaded.root, *task(command)), "is damaged", BACKUP)
    assert uploaded.store_path.read_bytes() == spoiled


def test_a_store_of_no_bytes_is_named_by_the_doctor_and_made_by_an_upload(
    uploaded: Project,
) -> None:
    os.truncate(uploaded.store_path, 0)
    doctor = invoke(uploaded.root, "nimbus.doctor")
    assert doctor.returncode == 0
    assert "is empty" in doctor.stdout
    assert "→ Put it back from a backup if it had batches" in doctor.stdout
    assert uploaded.store_path.stat().st_size == 0
    assert invoke(uploaded.root, "nimbus.upload", "nimbus.worker").returncode == 0
    assert counts(uploaded) == {"done": 100}


def test_a_log_of_garbage_is_no_reason_to_lose_what_the_store_has(uploaded: Project) -> None:
    path = uploaded.store_path
    path.with_name(path.name + "-wal").write_bytes(b"garbage" * 5000)
    assert counts(uploaded) == {"queued": 100}
    assert_sound(uploaded)
