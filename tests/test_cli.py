"""The tasks as commands: exit codes, JSON alone on stdout, options, places, hostile input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task

from nimbus_tasks import nimbus
from nimbus_tasks.core.project import Project
from tests.factories import (
    a_map,
    environment_for,
    invoke,
    invoke_command,
    start,
    write_map,
    write_maps,
)

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
#: Asked for once: a task that is asked again has no help any more.
ARGUMENTS = {name: task.get_arguments() for name, task in TASKS.items()}


def test_all_tasks_of_the_design_are_there() -> None:
    batch = ("list", "status", "monitor", "wait", "report", "metrics", "retry", "cancel", "verify")
    expected = {"nimbus.init", "nimbus.doctor", "nimbus.upload", "nimbus.worker"}
    assert TASKS.keys() >= expected | {f"nimbus.batch.{name}" for name in batch}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_does_and_every_option_too(name: str) -> None:
    task = TASKS[name]
    assert task.__doc__
    assert len(task.__doc__.strip().splitlines()[0]) <= 60
    for argument in ARGUMENTS[name]:
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


LOUD = """
import os, subprocess, sys
print("imported")
os.write(1, b"imported\\n")
KEPT = sys.stdout, sys.__stdout__

def process(page, progress):
    print("said")
    os.write(1, b"said\\n")
    subprocess.run(["echo", "said"])
    KEPT[1].write("said\\n")
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).printf(b"said\\n")
    return {}
"""


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_whatever_way_a_processor_writes_to_stdout_it_is_stderr(
    root: Path, options: tuple[str, ...]
) -> None:
    (root / "loud.py").write_text(LOUD)
    invoke(root, "nimbus.upload")
    ran = invoke(root, "nimbus.worker", "--processor=loud:process", *options)
    assert ran.returncode == 0
    assert "said" not in ran.stdout
    assert "imported" not in ran.stdout
    assert (ran.stderr.count("said"), ran.stderr.count("imported")) == (15, 2)
    assert not options or json.loads(ran.stdout)["done"] == 3


def test_what_comes_after_a_worker_in_its_chain_has_its_stdout_again(root: Path) -> None:
    (root / "tasks.py").write_text(
        "import subprocess\nfrom invoke import Collection, task\n"
        "from nimbus_tasks import nimbus\n\n"
        "@task\ndef after(c):\n"
        "    subprocess.run(['echo', 'from a program'])\n    print('said')\n\n"
        "ns = Collection(nimbus, after)\n"
    )
    ran = invoke(root, "nimbus.upload", "nimbus.worker", "after")
    assert "from a program" in ran.stdout
    assert "said" in ran.stdout


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
    watch = start(root, "nimbus.batch.monitor", "--interval=30")
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
    started = [start(tmp_path, "nimbus.upload", "--json") for _ in range(3)]
    documents = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len({document["project_id"] for document in documents}) == 1
    status = json.loads(invoke(tmp_path, "nimbus.batch", "--json").stdout)
    assert sum(b["summary"]["pending"] for b in status["batches"]) == 20


def in_process(name: str, /, **options: object) -> int:
    """The exit code of a task that is called in this process, which costs no start of Python."""
    try:
        TASKS[name](Context(), **options)
    except Exit as ended:
        return ended.code
    return 0


BATCH_TASKS = [name for name in TASKS if "batch" in {a.name for a in ARGUMENTS[name]}]


@pytest.mark.parametrize("batch", ["../../etc/passwd", "a:b", "", "x" * 500, "latest\n"])
@pytest.mark.parametrize("name", BATCH_TASKS)
def test_no_task_takes_an_id_that_is_none(
    name: str,
    batch: str,
    root: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    with project.open_store(create=True):
        pass
    assert in_process(name, batch=batch) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_a_dry_run_of_a_first_upload_writes_no_file(root: Path, project: Project) -> None:
    (project.folder / "project-config.json").unlink()
    (root / "fails.py").unlink()
    invoke_command(root)  # writes tasks.py
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ran = invoke(root, "nimbus.upload", "--dry-run", "--json", PYTHONDONTWRITEBYTECODE="1")
    document = json.loads(ran.stdout)
    assert document["dry_run"] is True
    assert document["project_id"] is None  # that of a project which nobody has made
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("name", ["nimbus.upload", "nimbus.batch.retry"])
def test_help_shows_the_options_and_does_nothing(root: Path, project: Project, name: str) -> None:
    for command in (["--help", name], [name, "--help"]):
        ran = invoke(root, *command)
        assert ran.returncode == 0
        for argument in ARGUMENTS[name]:
            assert f"--{str(argument.name).replace('_', '-')}" in ran.stdout
    assert not project.store_path.exists()


def test_a_worker_with_nothing_to_do_gives_the_outcome_of_its_batch_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.worker", processor="fails:process", exit_status=True) == 3
    assert in_process("nimbus.worker", batch="latest", exit_status=True) == 3


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("worker", "processor"),
        ("worker", "command"),
        ("upload", "folder"),
        ("init", "name"),
        ("batch.retry", "page"),
        ("batch.retry", "error"),
        ("batch.cancel", "reason"),
    ],
)
def test_an_option_that_is_given_and_empty_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    """As ``--processor=$UNSET`` is; the folder "" would be the one where the person is."""
    monkeypatch.chdir(root / ".nimbus" / "maps")
    monkeypatch.setattr("nimbus_tasks.upload.project_root", lambda c: root)
    monkeypatch.setattr("nimbus_tasks.worker.project_root", lambda c: root)
    if name == "worker":
        assert in_process("nimbus.upload", folder=".") == 0
    needed: dict[str, dict[str, Any]] = {
        "batch.cancel": {"batch": "latest"},
        "init": {"force": True},
    }
    assert in_process(f"nimbus.{name}", **{option: ""}, **needed.get(name, {})) == 2


@pytest.mark.parametrize(
    ("task", "yaml"),
    [
        ("upload", "nimbus: {upload: {folder: 2024}}"),
        ("worker", "nimbus: {worker: {processor: 7}}"),
        ("worker", "nimbus: {worker: {command: true}}"),
        ("worker", "nimbus: {worker: {concurrency: many}}"),
        ("worker", "nimbus: {worker: {timeout: true}}"),
        ("worker", "nimbus: {worker: fast}"),
        ("worker", "nimbus: [worker]"),
        ("upload", "nimbus: 5"),
    ],
)
def test_a_setting_that_is_none_is_refused_in_a_line_and_found_by_the_doctor(
    root: Path, task: str, yaml: str
) -> None:
    write_maps(root / "2024", 1)
    assert invoke(root, "nimbus.upload", "--limit=1").returncode == 0
    (root / "invoke.yaml").write_text(yaml)
    ran = invoke(root, f"nimbus.{task}")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "nimbus" in ran.stderr
    checked = invoke(root, "nimbus.doctor", "--json")
    faults = [c for c in json.loads(checked.stdout)["checks"] if c["level"] == "error"]
    assert (checked.returncode, [fault["name"] for fault in faults]) == (2, ["settings"])


@pytest.mark.parametrize(
    "yaml", ["", "nimbus:", "nimbus: {worker: }", "nimbus: {worker: {lease: }}"]
)
def test_an_empty_section_sets_nothing_and_leaves_the_environment_its_say(
    root: Path, yaml: str
) -> None:
    assert invoke(root, "nimbus.upload").returncode == 0
    (root / "invoke.yaml").write_text(yaml)
    assert invoke(root, "nimbus.worker", INVOKE_NIMBUS_WORKER_LEASE="x").returncode == 2
    assert invoke(root, "nimbus.worker").returncode == 0


def test_the_doctor_names_settings_that_there_are_not_and_those_that_there_are(root: Path) -> None:
    (root / "invoke.yaml").write_text(
        "nimbus:\n  worker: {concurency: 4, timeout: 5}\n  uplaod: {folder: content}\n"
    )
    ran = invoke(root, "nimbus.doctor", "--json", INVOKE_NIMBUS_MONITOR_INTERVAL="2")
    found = [c for c in json.loads(ran.stdout)["checks"] if c["name"] == "settings"]
    assert ran.returncode == 0
    warnings = [c["detail"].split()[0] for c in found if c["level"] == "warning"]
    assert warnings == ["nimbus.worker.concurency", "nimbus.uplaod"]
    [sound] = [c["detail"] for c in found if c["level"] == "ok"]
    assert sound.startswith("nimbus.worker.timeout, nimbus.monitor.interval set")


def test_a_setting_that_there_is_not_is_said_once_and_ends_nothing(root: Path) -> None:
    (root / "invoke.yaml").write_text(
        'nimbus:\n  worker: {concurency: 4, leases: 6}\n  "up\\e[31mlaod": {folder: content}\n'
    )
    ran = invoke(root, "nimbus.upload", "--json", "nimbus.worker", "nimbus.batch.report")
    assert ran.returncode == 0
    assert json.loads(ran.stdout[: ran.stdout.index("\n}\n") + 2])["page_count"] == 3
    names = "nimbus.worker.concurency, nimbus.worker.leases, nimbus.uplaod"
    assert [line for line in ran.stderr.splitlines() if "invoke.yaml" in line] == [
        f"⚠️ nothing reads {names} in invoke.yaml · See what there is: invoke nimbus.doctor"
    ]
    assert invoke(root, "nimbus.batch.list").stderr == ""  # which reads none


def test_the_doctor_never_sends_anybody_to_the_doctor(
    root: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nimbus_tasks.core.errors import StoreError

    def fails(project: Project, **options: object) -> None:
        raise StoreError("the store failed: Read-only", advice="Try: invoke nimbus.doctor")

    project.store_path.write_bytes(b"something")
    monkeypatch.setattr(Project, "open_store", fails)
    monkeypatch.chdir(root)
    assert in_process("nimbus.doctor") == 5
    shown = capsys.readouterr().out
    assert "Read-only" in shown
    assert "nimbus.doctor" not in shown


def test_more_threads_than_there_can_be_are_refused(
    root: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nimbus_tasks.worker.attempts import AttemptPool

    started: list[object] = []

    def start(pool: AttemptPool) -> None:
        started.append(pool)
        if len(started) > 30_000:  # about what Linux gives a process
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(AttemptPool, "_start_thread", start)
    monkeypatch.chdir(root)
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.worker", concurrency="100000") == 2


def test_commands_do_not_outlive_a_worker_that_has_lost_its_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nimbus_tasks.core.errors import StoreError
    from nimbus_tasks.processors.command import CommandProcessor
    from nimbus_tasks.worker.engine import Worker

    ended: list[object] = []

    def lose_the_store(worker: Worker) -> None:
        raise StoreError("the store has gone")

    monkeypatch.setattr(Worker, "run", lose_the_store)
    monkeypatch.setattr(CommandProcessor, "kill_all", lambda processor: ended.append(processor))
    monkeypatch.chdir(root)
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.worker", command="sleep 60") == 5
    assert len(ended) == 1


def test_json_is_whole_whatever_the_encoding_of_the_stream(root: Path) -> None:
    write_map(root / ".nimbus/maps", "größe–漢字.json", "{")
    ran = invoke(root, "nimbus.upload", "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert [r["file"] for r in json.loads(ran.stdout)["rejected"]] == ["größe–漢字.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text as Linux has them")
def test_a_name_that_is_no_text_ends_in_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # a project is called like its folder
    write_maps(folder / ".nimbus" / "maps", 1)
    monkeypatch.chdir(folder)
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.init", force=True, name=os.fsdecode(b"\xff")) in (0, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "lines"),
    [(">/dev/full", 5, 1), (">&-", 0, 0), (">&- <&-", 0, 0), (">/dev/full 2>/dev/full", 5, 0)],
)
@pytest.mark.parametrize("options", ["", " --json"])
def test_a_stdout_that_takes_nothing_ends_in_no_traceback(
    root: Path, project: Project, redirection: str, code: int, lines: int, options: str
) -> None:
    command = " ".join(invoke_command(root, "nimbus.upload", "nimbus.worker")) + options
    ran = subprocess.run(
        f"{command} {redirection}",
        shell=True,
        cwd=root,
        env=environment_for(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (ran.returncode, len(ran.stderr.splitlines())) == (code, lines), ran.stderr
    assert lines == 0 or "stdout: No space left" in ran.stderr
    with project.open_store() as store:  # no descriptor of its files was taken for stdout
        assert store.faults() == []


def test_a_file_that_cannot_be_used_is_named_in_a_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_right(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("nimbus_tasks.doctor.examine", no_right)
    monkeypatch.chdir(root)
    assert in_process("nimbus.doctor") == 5
    said = capsys.readouterr().err
    assert said.startswith("❌ /somewhere: Permission denied · See that")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["nimbus.batch.report", "nimbus.batch.status"])
def test_a_broken_pipe_is_141_and_silent_also_where_an_exit_code_was_asked_for(
    worked: Path, name: str
) -> None:
    """The reader has gone before anything is written, so nothing depends on who is faster."""
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        invoke_command(worked, name, "--json", "--exit-status"),
        cwd=worked,
        env=environment_for(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_project_is_what_add_collection_makes_it(root: Path) -> None:
    """As the design says it to another project, which has tasks and a default of its own."""
    (root / "tasks.py").write_text(
        "from invoke import Collection, task\nfrom nimbus_tasks import nimbus\n\n"
        "@task(default=True)\ndef build(c):\n    print('built')\n\n"
        "ns = Collection(build)\nns.add_collection(nimbus)\n"
    )
    ran = invoke(root, "build", "nimbus.upload", "nimbus.batch", "--json")
    assert ran.returncode == 0
    assert ran.stdout.startswith("built\n")
    assert len(json.loads(ran.stdout[ran.stdout.index("{") :])["batches"]) == 1


def test_a_folder_that_the_environment_names_is_meant_from_the_project(root: Path) -> None:
    write_map(root / "content", "x.json", a_map("x.html"))
    below = root / "below"
    below.mkdir()
    ran = subprocess.run(
        invoke_command(root, "nimbus.upload", "--json", "--dry-run"),
        cwd=below,
        env=environment_for(INVOKE_NIMBUS_UPLOAD_FOLDER="content"),
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout)["uploaded"] == 1


def test_tasks_called_from_other_tasks_give_back_data(root: Path) -> None:
    (root / "tasks.py").write_text(
        "from invoke import Collection, task\nfrom nimbus_tasks import nimbus\n"
        "from nimbus_tasks.batch.report import report\nfrom nimbus_tasks.batch.wait import wait\n"
        "from nimbus_tasks.upload import upload\nfrom nimbus_tasks.worker import worker\n\n"
        "@task\ndef build(c):\n"
        "    batch = upload(c).batch_id\n    worker(c)\n"
        "    print(wait(c).head.batch_id == batch, report(c, batch=batch).path.exists())\n\n"
        "ns = Collection(nimbus, build)\n"
    )
    assert "True True" in invoke(root, "build").stdout


def test_a_watch_gives_its_handlers_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that comes after it in a chain ends by SIGTERM as it would without it."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.worker") == 0
    try:
        assert in_process("nimbus.batch.monitor") == 0
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


C1_FREE = a_map("dist/\x9b31m\x7f\x85.html", head={"title": "\x9b2J"})


def test_no_control_character_is_in_json_on_stdout(root: Path) -> None:
    """JSON can say each of them as an escape; a terminal obeys U+009B as it does ESC [."""
    write_map(root / ".nimbus/maps", "odd.json", C1_FREE)
    invoke(root, "nimbus.upload", "nimbus.worker", "--processor=fails:process")
    ran = invoke(root, "nimbus.batch.report", "--json")
    assert C1_FREE["path"] in [page["path"] for page in json.loads(ran.stdout)["pages"]]
    assert not {c for c in ran.stdout if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) <= 0x9F}


def test_no_control_character_of_a_folders_name_reaches_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a\x1b[31mred\x9b2J"
    write_maps(root / ".nimbus" / "maps", 1)
    monkeypatch.chdir(root)
    codes = [in_process("nimbus.upload")]
    monkeypatch.setattr("nimbus_tasks.batch.report.project_root", lambda c: root)
    monkeypatch.chdir(tmp_path)
    codes.append(in_process("nimbus.batch.report"))
    captured = capsys.readouterr()
    assert codes == [0, 0]
    assert not {"\x1b", "\x9b"} & set(captured.out + captured.err)


@pytest.mark.skipif(sys.platform != "linux", reason="arguments that are no text as Linux has them")
def test_a_reason_that_is_no_text_is_a_bad_option_and_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    monkeypatch.chdir(root)
    assert in_process("nimbus.upload") == 0
    assert in_process("nimbus.batch.cancel", batch="latest", reason=os.fsdecode(b"\xff")) == 2


def test_documents_have_the_fields_that_scripts_rely_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)

    def document(name: str, **options: object) -> Any:
        in_process(name, json=True, **options)
        return json.loads(capsys.readouterr().out)

    summary = {"completed", "failed", "pending", "average_time_ms"}
    uploaded = document("nimbus.upload")
    assert uploaded.keys() >= {
        "batch_id", "project_id", "status", "page_count", "uploaded", "skipped", "rejected"
    }  # fmt: skip
    [row] = document("nimbus.batch.list")["batches"]
    assert row.keys() >= {"batch_id", "status", "created", "page_count", "summary"}
    assert row["summary"].keys() == summary
    assert document("nimbus.batch.status")["batches"] == [row]
    verified = document("nimbus.batch.verify")
    assert (verified["ok"], verified["findings"], verified["repaired"]) == (True, [], 0)
    cancelled = document("nimbus.batch.cancel", batch="latest")
    assert cancelled.keys() >= {"batch_id", "status", "cancelled", "in_flight", "finished_before"}
    waited = document("nimbus.batch.wait")
    assert waited.keys() >= {
        "batch_id", "project_id", "status", "created", "page_count", "counts", "summary", "finished"
    }  # fmt: skip
    assert waited["counts"].keys() == {
        "uploaded", "queued", "processing", "done", "failed", "cancelled"
    }  # fmt: skip
    metrics = document("nimbus.batch.metrics")
    assert metrics.keys() >= {
        "total_pages", "success_rate", "average_time_ms", "total_changes", "average_confidence"
    }  # fmt: skip
    assert document("nimbus.batch.retry").keys() >= {"batch_id", "status", "requeued"}
    report = document("nimbus.batch.report")
    assert report.keys() >= {"batch_id", "status", "summary", "pages"}
    assert report["pages"][0].keys() >= {
        "page_id", "status", "uploaded", "completed", "changes", "confidence", "error",
        "log_entries",
    }  # fmt: skip


def test_a_task_that_is_named_twice_in_a_chain_runs_twice(root: Path) -> None:
    """A build that tries failed pages once more, in one line."""
    (root / "flaky.py").write_text(
        "seen = set()\n\n"
        "def process(page, progress):\n"
        "    if page['page_id'] not in seen:\n"
        "        seen.add(page['page_id'])\n"
        "        raise ValueError('not yet')\n"
        "    return {}\n"
    )
    worker = ["nimbus.worker", "--processor=flaky:process"]
    chain = ["nimbus.upload", *worker, "nimbus.batch.retry", *worker, "nimbus.batch.wait"]
    ran = invoke(root, *chain, "--timeout=0.2", "--json")
    assert (ran.returncode, ran.stderr.count("not yet")) == (0, 3)


def test_a_task_that_several_have_as_pre_still_runs_once(root: Path) -> None:
    """That is Invoke's way with what tasks depend on, and stays so."""
    (root / "tasks.py").write_text(
        "from invoke import Collection, call, task\nfrom nimbus_tasks import nimbus\n"
        "from nimbus_tasks.upload import upload\nfrom nimbus_tasks.worker import worker\n\n"
        "@task(pre=[upload, call(worker, json=True)])\ndef one(c):\n    pass\n\n"
        "@task(pre=[upload, call(worker, json=True)])\ndef two(c):\n    pass\n\n"
        "ns = Collection(nimbus, one, two)\n"
    )
    ran = invoke(root, "one", "two")
    assert (ran.returncode, ran.stdout.count("sent"), ran.stdout.count('"done"')) == (0, 1, 1)
    assert invoke(root, "nimbus.batch", "nimbus.batch").stdout.count("batch_2") == 2


def test_a_settings_name_with_an_underscore_can_be_set_in_the_environment(root: Path) -> None:
    invoke(root, "nimbus.upload", "--limit=1")
    ran = invoke(
        root,
        "nimbus.worker",
        "--processor=fails:process",
        "--json",
        INVOKE_NIMBUS_WORKER_MAX_ATTEMPTS="3",
    )
    assert (json.loads(ran.stdout)["tried_again"], json.loads(ran.stdout)["failed"]) == (2, 1)


def test_a_typed_option_goes_before_the_environment_and_that_before_invoke_yaml(
    root: Path,
) -> None:
    for name, count in (("one", 1), ("two", 2)):
        write_maps(root / name, count)
    (root / "invoke.yaml").write_text("nimbus:\n  upload:\n    folder: one\n")

    def uploaded(*typed: str, **environment: Any) -> Any:
        ran = invoke(root, "nimbus.upload", *typed, "--dry-run", "--json", **environment)
        return json.loads(ran.stdout)["uploaded"]

    assert uploaded() == 1
    assert uploaded(INVOKE_NIMBUS_UPLOAD_FOLDER="two") == 2
    assert uploaded("--folder=.nimbus/maps", INVOKE_NIMBUS_UPLOAD_FOLDER="two") == 3
