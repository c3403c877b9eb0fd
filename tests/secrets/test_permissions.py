"""What holds pages is for its owner alone, and nothing that is relied on is for all to write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from tests.factories import environment_for, invoke_command, project_on_kv, write_maps
from tests.kv.kv_server import KVServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's permissions")
PRIVATE, OTHERS_MAY_WRITE = 0o600, 0o002


def run(root: Path, umask: int, *arguments: str) -> str:
    ran = subprocess.run(
        invoke_command(root, *arguments),
        cwd=root,
        env=environment_for(),
        umask=umask,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def modes(folder: Path, pattern: str) -> dict[str, int]:
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob(pattern)}
    assert found
    return found


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_store_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    write_maps(tmp_path / "maps", 2)
    (tmp_path / "looks.py").write_text(
        "from pathlib import Path\n\n\ndef process(page, progress):\n"
        "    with open('modes', 'a') as file:\n"
        "        for path in Path('.nimbus').glob('kv.sqlite3*'):\n"
        "            print(f'{path.name} {path.stat().st_mode & 0o777:o}', file=file)\n"
        "    return {}\n"
    )
    processor = "--processor=looks:process"
    run(tmp_path, umask, "nimbus.upload", "--folder=maps", "nimbus.worker", processor,
        "nimbus.batch.report")  # fmt: skip
    during = set((tmp_path / "modes").read_text().splitlines())
    names = [f"kv.sqlite3{end}" for end in ("", "-wal", "-shm", ".lock")]
    assert during == {f"{name} 600" for name in names}
    assert set(modes(tmp_path / ".nimbus", "kv.sqlite3*").values()) == {PRIVATE}
    for path in (tmp_path / ".nimbus", *(tmp_path / ".nimbus").rglob("*")):
        assert not path.stat().st_mode & OTHERS_MAY_WRITE, path
    # Reports are to be handed round, as the umask has it.
    assert modes(tmp_path / ".nimbus" / "reports", "*.json").popitem()[1] == 0o664 & ~umask


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_journal_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    with KVServer() as server:
        project_on_kv(tmp_path, server.namespace, server.prefix, maps=2)
        run(tmp_path, umask, "nimbus.upload")
    assert set(modes(tmp_path / ".nimbus", "recent-*").values()) == {PRIVATE}


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_link_leads_to_a_store_as_private(project: Project, maps: Path, no_umask: None) -> None:
    project.store_path.symlink_to(project.root / "elsewhere.sqlite3")
    run(project.root, 0, "nimbus.upload")
    assert modes(project.root, "elsewhere.sqlite3*")["elsewhere.sqlite3"] == PRIVATE


def test_a_store_that_is_open_to_all_is_named_and_stays_as_somebody_set_it(
    project: Project, maps: Path
) -> None:
    run(project.root, 0o022, "nimbus.upload")
    assert "privacy" not in run(project.root, 0o022, "nimbus.doctor")
    project.store_path.chmod(0o644)
    told = run(project.root, 0o022, "nimbus.doctor")
    assert "is open to every user of this machine" in told
    assert "chmod o= " in told
    run(project.root, 0o022, "nimbus.worker")
    assert modes(project.folder, "kv.sqlite3")["kv.sqlite3"] == 0o644
