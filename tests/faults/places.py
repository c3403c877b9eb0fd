"""Places that refuse to be written to, for real, and what a command must then say."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.project import Project, new_project, save_project
from tests.factories import (
    environment_for,
    failing,
    invoke_command,
    upload,
    work,
    write_maps,
    write_tasks,
)

#: Enough for a project and some batches of a few pages, and soon filled.
DISK_BYTES = 4 * 2**20

#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, and how Linux takes them from root.
_ROOTS_RIGHTS, _PR_CAPBSET_DROP = (1, 2), 24

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's limits and mounts")


class Disk:
    """A file system of its own, of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Until not one byte more is taken."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65_536, 4096, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free(self) -> None:
        self._ballast.unlink()

    def make_read_only(self, yes: bool) -> None:
        option = "remount,ro" if yes else "remount,rw"
        subprocess.run(["mount", "-o", option, str(self.folder)], check=True)


@contextmanager
def a_disk(folder: Path) -> Iterator[Disk]:
    """A disk mounted at ``folder``; a skip, with the reason, where this system lets nobody mount.

    What is tested on it is tested with a limit of the process as well, which needs no rights.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"there is no mount here: {error}")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        write_tasks(folder)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def invoke_limited(
    root: Path,
    *arguments: str,
    file_bytes: int | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command that may make no file larger than ``file_bytes``, and that may not write
    where permissions forbid it, which root else may."""

    def limit() -> None:
        import resource

        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            for capability in _ROOTS_RIGHTS:
                if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                    raise OSError(ctypes.get_errno(), "prctl")

    given = environment_for(**environment)
    if file_bytes is not None:  # the limit is none of coverage's, whose own file would meet it
        given = {k: v for k, v in given.items() if not k.startswith("COVERAGE_PROCESS")}
    return subprocess.run(
        invoke_command(root, *arguments),
        cwd=root,
        env=given,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def assert_refused(
    ran: subprocess.CompletedProcess[str], *words: str, code: int = 5
) -> subprocess.CompletedProcess[str]:
    """One line on stderr that says all of ``words``, nothing on stdout, and the exit code."""
    shown = (ran.args, ran.stdout, ran.stderr)
    assert ran.returncode == code, shown
    assert ran.stdout == "", shown
    assert len(ran.stderr.splitlines()) == 1, shown
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr, shown
    return ran


#: Every command that opens the store to change it.
CHANGING = ["worker", "batch.retry", "batch.cancel --batch=latest", "batch.verify --repair"]


def task(text: str) -> list[str]:
    """``batch.verify --repair`` as it is typed."""
    name, *options = text.split()
    return [f"nimbus.{name}", *options]


def counts(project: Project) -> dict[str, int]:
    """How many pages of the latest batch are in which state."""
    with project.open_store() as store:
        head = batches.find(store, project.project_id, None)
        view = batches.look(store, head, utc_now())
    return {state: count for state, count in view.tally.counts.items() if count}


def assert_sound(project: Project) -> None:
    """Verifying finds nothing."""
    with project.open_store() as store:
        assert verify_batch(project, store).findings == []


def half_failed(root: Path) -> Project:
    """A project with a batch of four pages: one done, one failed, two queued."""
    write_tasks(root)
    project = new_project(root, name="test", project_id="proj_0123456789ab")
    save_project(project)
    write_maps(project.folder / "maps", 2)
    with project.open_store(create=True) as store:
        begun = upload(project, store, project.folder / "maps")
        work(project, store, failing("dist/page-001.html"), max_attempts=1)
        write_maps(project.folder / "maps", 4)
        upload(project, store, project.folder / "maps", batch=begun.batch_id)
    return project
