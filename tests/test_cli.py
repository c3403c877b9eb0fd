"""The tasks as commands: exit codes, JSON alone on stdout, options, places, hostile input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.tasks import Task

from nimbus_tasks import nimbus
from nimbus_tasks.core.project import Project
from tests.factories import a_map, environment_for, invoke, invoke_command, write_map, write_maps

FAILS = "import sys\n\ndef process(page, progress):\n    raise ValueError('no')\n"


@pytest.fixture
def root(project: Project) -> Path:
    """A project's directory with three maps and a processor that always fails."""
    write_maps(project.folder / "maps", 3)
    (project.root / "fails.py").write_text(FAILS)
    return project.root


@pytest.fixture
def worked(root: Path) -> Path:
    """The same with a batch in which every page has failed."""
    assert (
        invoke(root, "nimbus.upload", "nimbus.worker", "--processor=fails:process").returncode == 0
    )
    return root


def tasks() -> Iterator[tuple[str, Task[Any]]]:
    def walk(collection: Collection, prefix: str) -> Iterator[tuple[str, Task[Any]]]:
        for name, task in collection.tasks.items():
            yield f"{prefix}.{name}", task
        for name, inner in collection.collections.items():
            yield from walk(inner, f"{prefix}.{name}")

    return walk(nimbus, "nimbus")


TASKS = dict(tasks())


def test_all_tasks_of_the_design_are_there() -> None:
    batch = ("list", "status", "monitor", "wait", "report", "metrics", "retry", "cancel", "verify")
    expected = {"nimbus.init", "nimbus.doctor", "nimbus.upload", "nimbus.worker"}
    assert TASKS.keys() >= expected | {f"nimbus.batch.{name}" for name in batch}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_does_and_every_option_too(name: str) -> None:
    task = TASKS[name]
    assert task.__doc__
    assert len(task.__doc__.strip().splitlines()[0]) <= 60
    for argument in task.get_arguments():
        assert argument.help, f"{name} --{argument.name}"
        assert not argument.positional
        assert len(argument.names) == 1  # no short flags that shift


def test_list_names_the_tasks_and_the_bare_name_lists_batches(root: Path) -> None:
    listed = invoke(root, "--list").stdout
    assert all(name in listed for name in TASKS)
    assert invoke(root, "nimbus.upload").returncode == 0
    assert "batch_" in invoke(root, "nimbus.batch").stdout


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ["nimbus.batch.status"]),
        (1, ["nimbus.batch.status", "--bogus"]),
        (2, ["nimbus.batch.status", "--batch=a:b"]),
        (2, ["nimbus.batch.cancel"]),
        (2, ["nimbus.batch.list", "--status=odd"]),
        (2, ["nimbus.init"]),
        (2, ["nimbus.init", "--force", "--store=oracle"]),
        (2, ["nimbus.upload", "--folder=nowhere"]),
        (2, ["nimbus.worker", "--processor=no_such_module:f"]),
        (2, ["nimbus.worker", "--processor=audit", "--command=true"]),
        (3, ["nimbus.batch.wait"]),
        (3, ["nimbus.batch.report", "--exit-status"]),
        (3, ["nimbus.batch.metrics", "--exit-status"]),
        (0, ["nimbus.batch.report"]),
        (4, ["nimbus.batch.report", "--batch=batch_20200101_000000"]),
        (4, ["nimbus.batch.retry", "--page=page_ffffffffffff"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_exit_code_tells_what_happened(worked: Path, code: int, command: list[str]) -> None:
    ran = invoke(worked, *command)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    if code == 2:
        assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("batch", ["../../etc/passwd", "a:b", "", "x" * 500, "a b", "\x1b[31m"])
@pytest.mark.parametrize("task", ["status", "retry"])
def test_an_id_that_is_none_is_refused_in_one_line(worked: Path, task: str, batch: str) -> None:
    ran = invoke(worked, f"nimbus.batch.{task}", f"--batch={batch}")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "\x1b" not in ran.stderr


@pytest.mark.parametrize(
    "option",
    [
        "nimbus.upload --limit=x",
        "nimbus.worker --concurrency=0",
        "nimbus.worker --max-attempts=1.5",
        "nimbus.worker --timeout=-1",
        "nimbus.worker --lease=nan",
        "nimbus.batch.list --limit=-3",
        "nimbus.batch.monitor --interval=soon",
        "nimbus.batch.wait --timeout=0",
    ],
)
def test_a_number_that_is_none_is_refused_in_one_line(root: Path, option: str) -> None:
    ran = invoke(root, *option.split())
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
    assert option.split()[1].partition("=")[0] in ran.stderr


def test_without_a_project_or_a_store_it_says_what_to_do(tmp_path: Path, project: Project) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "nimbus.init" in invoke(elsewhere, "nimbus.batch.status").stderr
    ran = invoke(project.root, "nimbus.batch.status")
    assert ran.returncode == 5
    assert "nimbus.upload" in ran.stderr


def test_a_store_that_is_damaged_is_named_by_every_command_and_by_the_doctor(
    root: Path, project: Project
) -> None:
    project.store_path.write_bytes(b"not a database, and long enough to be taken for one" * 100)
    for command in ("nimbus.batch.status", "nimbus.upload", "nimbus.worker", "nimbus.doctor"):
        ran = invoke(root, command)
        assert ran.returncode == 5, command
        assert "damaged" in ran.stderr + ran.stdout
        assert "Traceback" not in ran.stderr


def test_time_that_is_up_is_6_and_a_cancelled_batch_is_7(root: Path) -> None:
    invoke(root, "nimbus.upload")
    assert invoke(root, "nimbus.batch.wait", "--timeout=0.1").returncode == 6
    assert invoke(root, "nimbus.batch.monitor", "--timeout=0.1").returncode == 6
    assert invoke(root, "nimbus.batch.cancel", "--batch=latest").returncode == 0
    assert invoke(root, "nimbus.batch.wait").returncode == 7


@pytest.mark.parametrize(
    "command",
    [
        ["nimbus.init", "--force"],
        ["nimbus.doctor"],
        ["nimbus.upload", "--dry-run"],
        ["nimbus.upload"],
        ["nimbus.worker"],
        ["nimbus.batch"],
        ["nimbus.batch.list"],
        ["nimbus.batch.status"],
        ["nimbus.batch.status", "--batch=latest"],
        ["nimbus.batch.monitor", "--once"],
        ["nimbus.batch.wait"],
        ["nimbus.batch.report"],
        ["nimbus.batch.metrics"],
        ["nimbus.batch.retry"],
        ["nimbus.batch.cancel", "--batch=latest"],
        ["nimbus.batch.verify"],
    ],
    ids=" ".join,
)
def test_json_is_one_document_and_alone_on_stdout(worked: Path, command: list[str]) -> None:
    ran = invoke(worked, *command, "--json")
    assert isinstance(json.loads(ran.stdout), dict)


def test_what_a_processor_prints_is_no_part_of_the_document(root: Path) -> None:
    (root / "chatty.py").write_text(
        "def process(page, progress):\n    print('hello')\n    return {}\n"
    )
    invoke(root, "nimbus.upload")
    ran = invoke(root, "nimbus.worker", "--processor=chatty:process", "--json")
    assert json.loads(ran.stdout)["done"] == 3
    assert ran.stderr.count("hello") == 3


def test_refused_files_are_3_and_in_the_document_unless_they_may_be_skipped(root: Path) -> None:
    write_map(root / ".nimbus/maps", "bad.json", "{")
    ran = invoke(root, "nimbus.upload", "--json")
    assert ran.returncode == 3
    document = json.loads(ran.stdout)
    assert [r["file"] for r in document["rejected"]] == ["bad.json"]
    assert document["uploaded"] == 3
    assert "bad.json" in ran.stderr
    assert invoke(root, "nimbus.upload", "--skip-invalid").returncode == 0


def test_a_folder_without_any_usable_map_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    assert invoke(tmp_path, "nimbus.upload", "--folder=maps").returncode == 2
    write_map(tmp_path / "maps", "bad.json", "{")
    assert invoke(tmp_path, "nimbus.upload", "--folder=maps").returncode == 2
    assert not (tmp_path / ".nimbus").exists()


def test_a_chain_reaches_its_report_and_stops_before_what_depends_on_it(root: Path) -> None:
    (root / "tasks.py").write_text(
        "from invoke import Collection, task\nfrom nimbus_tasks import nimbus\n\n"
        "@task\ndef deploy(c):\n    print('deployed')\n\nns = Collection(nimbus, deploy)\n"
    )
    chain = ["nimbus.upload", "nimbus.worker", "nimbus.batch.report", "--exit-status", "deploy"]
    assert "deployed" in invoke(root, *chain).stdout
    failing = [*chain[:2], "--processor=fails:process", *chain[2:]]
    ran = invoke(root, *failing)
    assert ran.returncode == 3
    assert "Report:" in ran.stdout
    assert "deployed" not in ran.stdout


def test_a_task_that_waits_first_runs_only_if_all_went_well(root: Path) -> None:
    (root / "tasks.py").write_text(
        "from invoke import Collection, task\nfrom nimbus_tasks import nimbus\n"
        "from nimbus_tasks.batch.wait import wait\n\n"
        "@task(pre=[wait])\ndef deploy(c):\n    print('deployed')\n\n"
        "ns = Collection(nimbus, deploy)\n"
    )
    invoke(root, "nimbus.upload", "nimbus.worker", "--processor=fails:process")
    assert invoke(root, "deploy").returncode == 3
    invoke(root, "nimbus.batch.retry", "nimbus.worker")
    assert "deployed" in invoke(root, "deploy").stdout


def test_the_project_is_where_tasks_py_lies_and_typed_paths_where_one_is(root: Path) -> None:
    invoke(root, "nimbus.upload")
    below = root / "a" / "b"
    write_map(below / "here", "x.json", a_map("x.html"))
    ran = subprocess.run(
        [sys.executable, "-m", "invoke", "nimbus.upload", "--folder=here", "--json"],
        cwd=below,
        env=environment_for(),
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout)["uploaded"] == 1
    assert not (below / ".nimbus").exists()
    assert len(json.loads(invoke(root, "nimbus.batch", "--json").stdout)["batches"]) == 2


def test_options_can_be_set_in_invoke_yaml_and_in_the_environment(root: Path) -> None:
    write_map(root / "content", "x.json", a_map("x.html"))
    (root / "invoke.yaml").write_text(
        "nimbus:\n  upload:\n    folder: content\n  worker:\n    processor: fails:process\n"
    )
    assert json.loads(invoke(root, "nimbus.upload", "--json").stdout)["uploaded"] == 1
    assert json.loads(invoke(root, "nimbus.worker", "--json").stdout)["failed"] == 1
    typed = invoke(root, "nimbus.upload", "--folder=.nimbus/maps", "--json")
    assert json.loads(typed.stdout)["uploaded"] == 3
    ran = invoke(root, "nimbus.worker", "--json", INVOKE_NIMBUS_WORKER_PROCESSOR="audit")
    assert json.loads(ran.stdout)["done"] == 3
    bad = invoke(root, "nimbus.worker", INVOKE_NIMBUS_WORKER_CONCURRENCY="many")
    assert (bad.returncode, "--concurrency" in bad.stderr) == (2, True)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's pipe")
def test_a_pipe_that_is_closed_early_ends_in_silence(worked: Path) -> None:
    command = " ".join([*invoke_command(worked, "nimbus.batch.report", "--json"), "| head -1"])
    ran = subprocess.run(
        command, shell=True, cwd=worked, env=environment_for(), capture_output=True, text=True
    )
    assert ran.stdout.strip() == "{"
    assert "Traceback" not in ran.stderr
    assert "BrokenPipe" not in ran.stderr


def test_ctrl_c_ends_a_watch_with_130_and_not_the_batch(root: Path) -> None:
    invoke(root, "nimbus.upload")
    watch = subprocess.Popen(
        invoke_command(root, "nimbus.batch.monitor", "--interval=30"),
        cwd=root,
        env=environment_for(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert "queued" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=20)
    assert watch.returncode == 130
    assert "Traceback" not in err
    assert '"queued"' in invoke(root, "nimbus.batch.status", "--json").stdout


HOSTILE = "a\x1b[31mred\x1b]52;c;aGk=\x07\x1b]8;;http://x\x1b\\\x9b2J\u202e\r\x00\x7f\u2028.html"


def test_no_control_byte_of_a_page_reaches_a_terminal(tmp_path: Path) -> None:
    maps = tmp_path / ".nimbus" / "maps"
    write_map(maps, "a.json", a_map(HOSTILE, head={"title": HOSTILE}))
    write_map(maps, "b.json", "{" + HOSTILE)
    (tmp_path / "hostile.py").write_text(
        f"TEXT = {HOSTILE!r}\n\ndef process(page, progress):\n"
        "    progress(TEXT, 10, TEXT)\n    raise ValueError(TEXT)\n"
    )
    for command in (
        ["nimbus.init", f"--name={HOSTILE.replace(chr(0), '')}"],
        ["nimbus.upload"],
        ["nimbus.worker", "--processor=hostile:process"],
        ["nimbus.batch.status", "--batch=latest"],
        ["nimbus.batch.monitor"],
        ["nimbus.batch.report"],
        ["nimbus.batch.metrics"],
        ["nimbus.batch.retry"],
        ["nimbus.batch.cancel", "--batch=latest", f"--reason={HOSTILE.replace(chr(0), '')}"],
        ["nimbus.batch.status", "--batch=latest"],
        ["nimbus.batch.verify"],
        ["nimbus.doctor"],
        ["nimbus.batch.status", f"--batch={HOSTILE.replace(chr(0), '')}"],
    ):
        ran = invoke(tmp_path, *command)
        shown = ran.stdout + ran.stderr
        assert "Traceback" not in shown, command
        found = {c for c in shown if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) <= 0x9F}
        assert not found | ({"\u202e", "\u2028"} & set(shown)), (command, shown)


def test_a_stream_that_knows_no_unicode_gets_plain_signs(worked: Path) -> None:
    ran = invoke(
        worked, "nimbus.batch.status", "--batch=latest", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert ran.returncode == 0
    assert ran.stdout.isascii()
    assert "failed" in ran.stdout


def test_colour_is_off_in_a_pipe_and_can_be_asked_for(worked: Path) -> None:
    command = ("nimbus.batch.status", "--batch=latest")
    assert "\x1b[" not in invoke(worked, *command).stdout
    assert "\x1b[31m" in invoke(worked, *command, FORCE_COLOR="1").stdout
    assert "\x1b[" not in invoke(worked, *command, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_the_doctor_finds_nothing_wrong_with_a_sound_project(worked: Path) -> None:
    ran = invoke(worked, "nimbus.doctor", "--json")
    document = json.loads(ran.stdout)
    assert document["ok"]
    assert {"versions", "configuration", "folder", "sqlite", "store"} <= {
        check["name"] for check in document["checks"]
    }


def test_init_keeps_what_others_wrote_into_the_configuration(project: Project) -> None:
    path = project.folder / "project-config.json"
    config = {**json.loads(path.read_text()), "owner": "ann"}
    path.write_text(json.dumps(config))
    ran = invoke(project.root, "nimbus.init", "--force", "--name=New name")
    assert ran.returncode == 0
    assert json.loads(path.read_text()) == {**config, "name": "New name"}


def test_two_uploads_that_begin_a_project_at_once_make_one(tmp_path: Path) -> None:
    write_maps(tmp_path / ".nimbus" / "maps", 20)
    started = [
        subprocess.Popen(
            invoke_command(tmp_path, "nimbus.upload", "--json"),
            cwd=tmp_path,
            env=environment_for(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    documents = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len({document["project_id"] for document in documents}) == 1
    status = json.loads(invoke(tmp_path, "nimbus.batch", "--json").stdout)
    assert sum(b["summary"]["pending"] for b in status["batches"]) == 20
