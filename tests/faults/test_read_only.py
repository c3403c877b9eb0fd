"""A folder that may not be written: a line that says so, exit code 5, and all stays as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from tests.factories import invoke, project_on_kv, write_maps, write_tasks
from tests.faults.places import (
    CHANGING,
    Disk,
    assert_refused,
    assert_sound,
    counts,
    half_failed,
    invoke_limited,
    needs_posix,
    task,
)
from tests.kv.kv_server import KVServer

pytestmark = needs_posix
CURE = "See that it lies on a disk that can be written, and that you have the right to."
READING = ["batch.status", "batch.report", "batch.monitor --once"]


def test_every_command_on_a_read_only_disk_and_after_it(disk: Disk) -> None:
    project = half_failed(disk.folder)
    before = counts(project)
    disk.make_read_only(True)
    for command in (*CHANGING, *READING, "upload --changed", "init --force"):
        ran = invoke(disk.folder, *task(command))
        assert_refused(ran, "Read-only file system", CURE, str(project.folder))
    doctor = invoke(disk.folder, "nimbus.doctor")
    assert doctor.returncode == 5
    assert doctor.stdout.count("Read-only file system") == 2
    assert f"→ {CURE}" in doctor.stdout
    disk.make_read_only(False)

    assert counts(project) == before
    assert invoke(disk.folder, "nimbus.batch.retry", "nimbus.worker").returncode == 0
    assert counts(project) == {"done": 4}
    assert_sound(project)


def test_a_new_project_on_a_read_only_disk(disk: Disk) -> None:
    write_maps(disk.folder / "maps", 2)
    disk.make_read_only(True)
    for command in ("init", "upload --folder=maps"):
        assert_refused(invoke(disk.folder, *task(command)), "Read-only file system", CURE)
    assert "Read-only file system" in invoke(disk.folder, "nimbus.doctor").stdout
    disk.make_read_only(False)
    assert invoke(disk.folder, "nimbus.upload", "--folder=maps").returncode == 0


# --- permissions: without mounting ---


def without_rights(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where nothing may be written, neither the files that are there nor new ones."""
    before = [(path, path.stat().st_mode) for path in (root, *root.rglob("*"))]
    for path, mode in before:
        path.chmod(mode & 0o555)
    try:
        return invoke_limited(root, *task(command))
    finally:
        for path, mode in before:
            path.chmod(mode)


def files(project: Project) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [*CHANGING, "batch.report", "upload --changed", "init --force"])
def test_a_folder_without_permissions(tmp_path: Path, command: str) -> None:
    project = half_failed(tmp_path)
    before = files(project)
    assert_refused(without_rights(tmp_path, command), "Permission denied", CURE)
    assert files(project) == before
    assert invoke(tmp_path, *task(command)).returncode == 0


def test_a_missing_permission_is_named_by_the_doctor(tmp_path: Path) -> None:
    half_failed(tmp_path)
    ran = without_rights(tmp_path, "doctor")
    assert ran.stdout.count("Permission denied") == 2
    assert ran.stdout.count(f"→ {CURE}") == 2
    assert ran.returncode == 5


def test_a_journal_without_permissions_sends_nothing(tmp_path: Path) -> None:
    with KVServer() as server:
        project_on_kv(tmp_path, server.namespace, server.prefix, maps=2)
        write_tasks(tmp_path)
        assert_refused(without_rights(tmp_path, "upload"), "Permission denied", "recent-", CURE)
        assert server.data == {}
        assert invoke(tmp_path, "nimbus.upload").returncode == 0
