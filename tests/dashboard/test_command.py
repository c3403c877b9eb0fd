"""The command line: what it says, how it ends, and that no input ends in a traceback."""

from __future__ import annotations

import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks import dashboard as dashboard_module
from nimbus_tasks.core.project import Project
from tests.factories import invoke, start

Running = tuple[subprocess.Popen[str], str]


@contextmanager
def running(root: Path, *options: str, **environment: str) -> Iterator[Running]:
    """The real command, and the address that it has printed."""
    process = start(root, "nimbus.dashboard", *options, **environment)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_ctrl_c_is_its_regular_end_even_while_somebody_watches(project: Project) -> None:
    with running(project.root, "--no-open") as (process, url):
        answer = requests.get(url + "events", stream=True, timeout=20)
        lines = answer.iter_lines(decode_unicode=True)
        assert next(lines) == "event: look"
        process.send_signal(signal.SIGINT)
        said, wrong = process.communicate(timeout=20)
        assert process.returncode == 0
        assert said.splitlines()[-1] == "The dashboard has ended; batches and workers go on."
        assert wrong == ""
        assert "event: bye" in list(lines)


def test_it_listens_to_this_machine_alone(project: Project) -> None:
    with running(project.root, "--no-open") as (_, url):
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()


@pytest.mark.skipif(sys.platform == "win32", reason="the browser is a shell script here")
def test_it_opens_the_browser_unless_told_not_to(project: Project) -> None:
    opened, browser = project.root / "opened", project.root / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    with running(project.root, "--no-open", BROWSER=f"{browser} %s") as (_, url):
        assert requests.get(url, timeout=20).ok
        assert not opened.exists()
    with running(project.root, BROWSER=f"{browser} %s") as (_, url):
        for _ in range(400):
            if opened.exists():
                break
            requests.get(url, timeout=20)
        once = opened.read_text().strip()
        assert url.split("/")[3] not in once
        assert requests.get(once, timeout=20).url == url
        assert requests.get(once, timeout=20).status_code == 403


def test_a_port_in_use_is_one_line(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = invoke(project.root, "nimbus.dashboard", "--no-open", f"--port={port}")
    assert ran.returncode == 2
    assert f"port {port} is in use" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("port", "x"), ("port", "-1"), ("port", "65536"), ("interval", "0"), ("interval", "x")],
)
def test_a_bad_option_is_one_line(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(Exit) as ended:
        dashboard_module.dashboard(Context(), no_open=True, **{option: value})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--{option}" in line


def test_where_there_is_no_project_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exit) as ended:
        dashboard_module.dashboard(Context(), no_open=True)
    assert ended.value.code == 2
    assert "there is no project" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_the_command(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(dashboard_module, "find_spec", lambda name: None)
    with pytest.raises(Exit) as ended:
        dashboard_module.dashboard(Context())
    assert ended.value.code == 2
    assert "pip install 'nimbus-tasks[dashboard]'" in capsys.readouterr().err
