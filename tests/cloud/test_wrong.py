"""What a person meets of ``nimbus.cloud.*`` and of a project whose pages a Worker processes, where
something is missing, too old, stopped or mixed up: one line that says so, and what to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest

from nimbus_tasks.batch.cancel import Cancelled, _lines
from nimbus_tasks.cloud.dev import LocalWorker, _check_api, _end
from nimbus_tasks.cloud.wrangler import find_wrangler, last_words, run_wrangler, wrangler_version
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.doctor import Check, examine
from nimbus_tasks.ui.style import Style
from tests.factories import invoke, start

OLD_NODE = "Wrangler requires at least Node.js v22.12.0. You are using v20.20.2. Please update."
ZEROS = "0" * 32


def refused(root: Path, *arguments: str, code: int, **environment: str) -> str:
    """What a command says last, that says nothing on standard output."""
    ran = invoke(root, *arguments, timeout=60, **environment)
    assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


def checks(root: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(root)}


@pytest.fixture
def wrangler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for wrangler: fails with what is in a file, or says the version that is there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    says = tools / "says"
    program = tools / "wrangler"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsaid = open({str(says)!r}).read()\nprint(said)\n"
        "sys.exit('Node' in said)\n"
    )
    program.chmod(0o755)
    (tools / "node").symlink_to(sys.executable)  # it is looked for, not run
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return says


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (OLD_NODE, "at least Node.js v22.12.0"),
        (" ⛅️ wrangler 3.114.17 (update available 4.164.0)", "3.114.17, and 4 is needed"),
        ("", "of no version"),
    ],
)
def test_a_wrangler_that_does_not_do(tmp_path: Path, wrangler: Path, said: str, words: str) -> None:
    wrangler.write_text(said)
    with pytest.raises(UsageError, match=words):
        wrangler_version(tmp_path)
    ran = invoke(tmp_path, "nimbus.cloud.init", PATH=os.environ["PATH"])
    assert (ran.returncode, len(ran.stderr.splitlines())) == (0, 1)
    assert words in ran.stderr
    check = checks(tmp_path)["wrangler"]
    assert check.level == "warning"
    assert words in check.detail


def test_a_wrangler_that_does(tmp_path: Path, wrangler: Path) -> None:
    wrangler.write_text("4.164.0")
    assert wrangler_version(tmp_path) == "4.164.0"
    assert invoke(tmp_path, "nimbus.cloud.init", PATH=os.environ["PATH"]).stderr == ""
    assert checks(tmp_path)["wrangler"].detail == "wrangler 4.164.0 runs"
    (tmp_path / "cloud" / "wrangler.jsonc").write_text("{ broken")
    assert "cannot be read" in checks(tmp_path)["wrangler"].detail


def test_a_node_that_is_too_old_is_no_fault_of_the_store(tmp_path: Path, wrangler: Path) -> None:
    wrangler.write_text(OLD_NODE)
    with pytest.raises(UsageError, match="at least Node"):
        run_wrangler(find_wrangler(tmp_path), tmp_path, ("deploy",))


def test_a_wrangler_that_hangs_is_ended_with_all_that_it_has_started(
    tmp_path: Path, wrangler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimbus_tasks.cloud.wrangler.VERSION_SECONDS", 0.5)
    program, started = wrangler.with_name("wrangler"), tmp_path / "started"
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {started}\nwait\n")
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"wrangler --version has not ended after 0\.5 s"):
        wrangler_version(tmp_path)
    assert time.monotonic() - begun < 60  # of the thousand that it would take
    # Whoever adopts it may be slow to see that it is dead.
    while _runs(int(started.read_text())):
        assert time.monotonic() - begun < 120, "what it has started runs on"
        time.sleep(0.05)


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so; what it reads may not be there yet."""
    deadline = time.monotonic() + 30
    while True:
        with suppress(OSError, ValueError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    ran = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return ran.stdout.strip()[:1] not in ("", "Z")


def test_dev_says_of_an_old_node_what_the_others_say(tmp_path: Path, wrangler: Path) -> None:
    wrangler.write_text(OLD_NODE)
    path = os.environ["PATH"]
    invoke(tmp_path, "nimbus.cloud.init", PATH=path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    line = refused(tmp_path, "nimbus.cloud.dev", f"--port={port}", code=2, PATH=path)
    assert line == f"❌ {OLD_NODE} · Get Node 22 or newer from https://nodejs.org."


def test_a_port_that_somebody_has(tmp_path: Path, wrangler: Path) -> None:
    wrangler.write_text("4.164.0")
    path = os.environ["PATH"]
    invoke(tmp_path, "nimbus.cloud.init", PATH=path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(tmp_path, "nimbus.cloud.dev", f"--port={port}", code=2, PATH=path)
    assert f"port {port} cannot be had" in line
    assert "--port" in line.removeprefix(f"port {port}")


def test_two_of_one_folder_nor_one_beside_what_a_killed_one_has_left(
    tmp_path: Path, wrangler: Path
) -> None:
    """They would do the pages of one KV twice. wrangler outlives a ``kill -9`` of whoever started
    it."""
    path = os.environ["PATH"]
    wrangler.write_text("4.164.0")
    invoke(tmp_path, "nimbus.cloud.init", PATH=path)
    program = wrangler.with_name("wrangler")
    program.write_text("#!/bin/sh\necho It begins\nexec sleep 60\n")
    state = tmp_path / "cloud" / ".wrangler"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"--port={server.getsockname()[1]}"
    first = start(tmp_path, "nimbus.cloud.dev", port, PATH=path)
    started = None
    try:
        until(lambda: "begins" in (state / "dev.log").read_text() and (state / "dev.pid").exists())
        started = int((state / "dev.pid").read_text())
        second = refused(tmp_path, "nimbus.cloud.dev", port, code=2, PATH=path)
        first.kill()
        first.communicate()
        third = refused(tmp_path, "nimbus.cloud.dev", port, code=2, PATH=path)
    finally:
        first.kill()
        if started is not None:
            os.killpg(started, signal.SIGKILL)
    assert second == third
    assert f"{tmp_path / 'cloud'} runs already" in third
    assert third.endswith(f"kill {started}")
    program.write_text("#!/bin/sh\necho It ends\n")
    last = refused(tmp_path, "nimbus.cloud.dev", port, code=2, PATH=path)
    assert "wrangler does not run: It ends" in last


def test_a_worker_that_cannot_be_built_is_told_at_once(tmp_path: Path, wrangler: Path) -> None:
    """wrangler waits until somebody has mended it."""
    path = os.environ["PATH"]
    wrangler.write_text("4.164.0")
    invoke(tmp_path, "nimbus.cloud.init", PATH=path)
    says = "[ERROR] Build failed with 1 error:\n[ERROR] Unexpected end of file\nprocessor.js:2:0:"
    wrangler.with_name("wrangler").write_text(f"#!/bin/sh\necho '{says}'\nexec sleep 300\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"--port={server.getsockname()[1]}"
    began = time.monotonic()
    line = refused(tmp_path, "nimbus.cloud.dev", port, code=2, PATH=path)
    assert "Unexpected end of file processor.js:2:0:" in line
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("leads_to", ["empty", "nowhere"])
def test_a_link_is_no_place_for_a_worker(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cloud").symlink_to(leads_to)
    line = refused(tmp_path, "nimbus.cloud.init", code=2)
    assert "is there already; nothing was written" in line


def test_who_is_tired_of_waiting_for_wrangler_leaves_none_behind() -> None:
    """Ctrl-C once more while it ends."""
    process = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; sleep 60"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        tired = patch.object(process, "wait", side_effect=[KeyboardInterrupt, 0])
        with tired, pytest.raises(KeyboardInterrupt):
            _end(process)
    assert process.wait(10) == -signal.SIGKILL


def test_a_tick_whose_answer_is_none_is_followed_by_another(tmp_path: Path) -> None:
    """As of a wrangler that is killed in the middle of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"rubbish\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(["sleep", "60"]) as process:
            LocalWorker(address, tmp_path, tmp_path, process).tick()
            process.kill()


def test_the_last_error_is_told_and_no_warning_before_it() -> None:
    log = (
        "[wrangler:warn] Unable to fetch the `Request.cf` object!\n"
        "Error: getaddrinfo ENOTFOUND workers.cloudflare.com\n"
        "✘ [ERROR] Build failed with 1 error:\n\n"
        "  ✘ [ERROR] Unexpected end of file\n\n      processor.js:2:0:\n"
        "🪵  Logs were written to x.log\n"
    )
    assert last_words(log) == "Unexpected end of file processor.js:2:0:"


def test_a_wrangler_whose_kv_is_elsewhere(tmp_path: Path) -> None:
    log = tmp_path / "dev.log"
    log.write_text(" ⛅️ wrangler 4.86.0 (update available 4.164.0)\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # knows no GET
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UsageError, match=r"wrangler 4\.86\.0 does not serve its local KV"):
            _check_api(f"http://127.0.0.1:{server.server_port}", log)
        server.shutdown()


# --- with the configuration of nimbus.cloud.dev ---


@pytest.fixture
def dev(tmp_path: Path) -> dict[str, str]:
    """The environment of a project whose local Worker is not running."""
    invoke(tmp_path, "nimbus.cloud.init", "--url=https://pages.example.com/")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}/cdn-cgi/local/explorer/api"
    own = json.loads((tmp_path / ".nimbus" / "project-config.json").read_text())
    cloudflare = {"namespace_id": ZEROS, "worker_namespace_id": ZEROS, "api_base": base}
    config = tmp_path / "cloud" / "dev.json"
    config.write_text(json.dumps({**own, "store": "cloudflare", "cloudflare": cloudflare}))
    return {"NIMBUS_CONFIG": "cloud/dev.json"}


@pytest.mark.parametrize("task", ["upload", "batch.status", "batch.monitor"])
def test_a_worker_that_is_not_running_is_said_at_once(
    tmp_path: Path, dev: dict[str, str], task: str
) -> None:
    (tmp_path / ".nimbus" / "maps").mkdir(exist_ok=True)
    (tmp_path / ".nimbus" / "maps" / "a.json").write_text('{"path": "/", "head": {}}')
    began = time.monotonic()
    line = refused(tmp_path, f"nimbus.{task}", code=5, **dev)
    assert "the local Worker is not running" in line
    assert "invoke nimbus.cloud.dev" in line
    assert "cloud/dev.json" in line
    assert time.monotonic() - began < 20  # it was 30, and the beginning of the command


def test_no_second_worker_beside_the_worker(tmp_path: Path, dev: dict[str, str]) -> None:
    assert "nimbus.batch.monitor" in refused(tmp_path, "nimbus.worker", code=2, **dev)


def test_the_local_configuration_is_not_deployed(tmp_path: Path, dev: dict[str, str]) -> None:
    before = (tmp_path / "cloud" / "dev.json").read_text()
    assert "unset NIMBUS_CONFIG" in refused(tmp_path, "nimbus.cloud.deploy", code=2, **dev)
    assert (tmp_path / "cloud" / "dev.json").read_text() == before


def test_a_local_configuration_that_is_broken(tmp_path: Path, dev: dict[str, str]) -> None:
    (tmp_path / "cloud" / "dev.json").write_text("{ broken")
    line = refused(tmp_path, "nimbus.batch.status", code=2, **dev)
    assert "unset that, or mend it" in line
    assert "nimbus.init" not in line  # which would write one of the embedded store there


# --- what is said of a Worker ---


def test_what_becomes_of_pages_in_flight_is_said_as_the_engine_does_it() -> None:
    cancelled = Cancelled("batch_1", "cancelling", 3, 7, 0)
    plain = Style(colour=False, unicode=False)
    here, there = ("\n".join(_lines(cancelled, plain, e)) for e in ("python", "cloudflare"))
    assert "7 pages in flight, which finish and keep their result" in here
    assert "7 pages in flight: those that have begun finish" in there
    assert "the rest is cancelled" in there
