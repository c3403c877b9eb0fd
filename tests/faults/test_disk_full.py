"""A disk that is full: a line, exit code 5, and nothing lost; with space again all goes on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project, new_project, save_project
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.store import Entry
from tests.factories import invoke, project_on_kv, write_maps
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
NO_SPACE = ("no space left for the store", "Free some space", "kv.sqlite3")


def test_a_new_project_on_a_full_disk(disk: Disk) -> None:
    disk.fill()
    ran = assert_refused(invoke(disk.folder, "nimbus.init"), "No space left on device")
    assert "Free some space" in ran.stderr
    told = invoke(disk.folder, "nimbus.doctor").stdout
    assert "No space left on device" in told
    assert "→ Free some space" in told
    disk.free()
    assert list((disk.folder / ".nimbus").iterdir()) == []
    assert invoke(disk.folder, "nimbus.init").returncode == 0


def test_an_upload_on_a_full_disk(disk: Disk) -> None:
    project = new_project(disk.folder, project_id="proj_0123456789ab")
    save_project(project)
    write_maps(project.folder / "maps", 5)
    disk.fill()
    assert_refused(invoke(disk.folder, "nimbus.upload"), *NO_SPACE)
    disk.free()
    assert invoke(disk.folder, "nimbus.upload").returncode == 0
    assert counts(project) == {"queued": 5}
    assert_sound(project)


def test_every_command_on_a_full_disk_and_after_it(disk: Disk) -> None:
    project = half_failed(disk.folder)
    before = counts(project)
    assert before == {"done": 1, "failed": 1, "queued": 2}
    disk.fill()
    for command in (*CHANGING, "batch.report", "batch.status"):
        assert_refused(invoke(disk.folder, *task(command)), *NO_SPACE)
    doctor = invoke(disk.folder, "nimbus.doctor")
    assert doctor.returncode == 5
    assert doctor.stdout.count("Free some space") == 2  # of the folder, and of the store
    disk.free()

    assert counts(project) == before
    assert_sound(project)
    assert invoke(disk.folder, "nimbus.batch.retry").returncode == 0
    assert invoke(disk.folder, "nimbus.worker").returncode == 0
    assert counts(project) == {"done": 4}
    assert invoke(disk.folder, "nimbus.batch.report").returncode == 0
    assert_sound(project)


def test_a_disk_that_fills_up_under_a_worker(disk: Disk) -> None:
    project = half_failed(disk.folder)
    (disk.folder / "fills.py").write_text(
        "from pathlib import Path\n\nfrom tests.faults.places import Disk\n\n\n"
        "def process(page, progress):\n    Disk(Path.cwd()).fill()\n    return {'changes': 1}\n"
    )
    command = ("nimbus.worker", "--processor=fills:process", "--concurrency=1", "--lease=1")
    ran = invoke(disk.folder, *command)
    assert_refused(ran, "store", "pace")
    disk.free()
    ran = invoke(disk.folder, "nimbus.worker", "--lease=1")
    assert ran.returncode == 0, ran.stderr
    assert counts(project) == {"done": 3, "failed": 1}
    assert_sound(project)


# --- a limit of the process: what a quota does, wherever the tests run ---


@pytest.mark.parametrize("command", [*CHANGING, "batch.report"])
def test_a_quota_ends_each_command_with_a_line(tmp_path: Path, command: str) -> None:
    project = half_failed(tmp_path)
    before = counts(project)
    ran = assert_refused(invoke_limited(tmp_path, *task(command), file_bytes=600), "kv.sqlite3")
    assert "space" in ran.stderr
    assert counts(project) == before
    assert_sound(project)
    assert invoke(tmp_path, *task(command)).returncode == 0


def test_a_quota_ends_a_large_upload_and_it_goes_on_later(tmp_path: Path) -> None:
    project = new_project(tmp_path, project_id="proj_0123456789ab")
    save_project(project)
    write_maps(project.folder / "maps", 300)
    ran = invoke_limited(tmp_path, "nimbus.upload", file_bytes=200_000)
    assert_refused(ran, "kv.sqlite3", "quota")
    assert invoke(tmp_path, "nimbus.upload").returncode == 0
    assert counts(project) == {"queued": 300}
    assert_sound(project)


def test_a_quota_leaves_the_configuration_as_it_was(project: Project) -> None:
    path = project.folder / "project-config.json"
    before = path.read_bytes()
    ran = invoke_limited(project.root, "nimbus.init", "--force", file_bytes=20)
    assert_refused(ran, "File too large", "raise the quota")
    assert path.read_bytes() == before
    assert [p.name for p in project.folder.iterdir()] == ["project-config.json"]


def test_a_quota_is_named_by_the_doctor(project: Project) -> None:
    ran = invoke_limited(project.root, "nimbus.doctor", file_bytes=600)
    assert ran.returncode == 5
    assert "File too large" in ran.stdout
    assert "→ Free some space, or raise the quota" in ran.stdout


# --- Cloudflare's journal ---


def writes(server: KVServer) -> list[str]:
    return [path for method, path in server.requests if method == "PUT"]


def test_where_the_journal_cannot_be_written_nothing_is_sent(tmp_path: Path) -> None:
    with KVServer() as server:
        project = project_on_kv(tmp_path, server.namespace, server.prefix, maps=3)
        ran = invoke_limited(tmp_path, "nimbus.upload", file_bytes=600)
        assert_refused(ran, "recent-", "space")
        assert writes(server) == []
        assert invoke(tmp_path, "nimbus.upload", "nimbus.worker").returncode == 0
        (journal,) = project.folder.glob("recent-*.sqlite3")
        before, data = journal.read_bytes(), dict(server.data)

        server.requests.clear()
        ran = invoke_limited(tmp_path, "nimbus.batch.cancel", "--batch=latest", file_bytes=600)
        assert_refused(ran, "recent-", "space")
        assert server.data == data
        assert writes(server) == []
        assert journal.read_bytes() == before  # what was written lately is not forgotten
        assert invoke(tmp_path, "nimbus.batch.cancel", "--batch=latest").returncode == 0


def test_the_journal_on_a_full_disk_keeps_what_it_has(disk: Disk) -> None:
    path = disk.folder / "recent-0.sqlite3"
    with closing(Journal(path)) as journal:
        journal.add([Entry("status:a", "{}", {})], [], "2026-11-24T00:00:00Z")
        disk.fill()
        with pytest.raises(Exception, match="no space left"):
            journal.add([Entry("status:b", "x" * 200_000, {})], [], "2026-11-24T00:00:01Z")
        disk.free()
        assert journal.get_many(["status:a", "status:b"]).keys() == {"status:a"}
        journal.add([Entry("status:b", "{}", {})], [], "2026-11-24T00:00:02Z")
        assert journal.get_many(["status:a", "status:b"]).keys() == {"status:a", "status:b"}
