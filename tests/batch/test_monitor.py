"""The monitor: lines and objects off a terminal, a block on one; its last look stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch import monitor
from nimbus_tasks.batch.monitor import watch_batch
from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import environment_for, failing, invoke_command, upload, work
from tests.ui.terminal import FakeTerminal, Screen

Meanwhile = Callable[[], object]


@pytest.fixture
def between(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what happens between two looks of the monitor, in the place of waiting."""
    monkeypatch.chdir(project.root)

    def happens(*steps: Meanwhile) -> None:
        remaining = iter(steps)

        def sleep(seconds: float) -> None:
            next(remaining)()

        monkeypatch.setattr(monitor, "watch_batch", partial(watch_batch, sleep=sleep))

    return happens


def nothing() -> None:
    """What happens between most looks."""


def lines_of(captured: str) -> list[str]:
    """The lines without the time that each begins with."""
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in captured.splitlines())
    return [line[10:] for line in captured.splitlines()]


def test_off_a_terminal_a_change_is_a_line_and_no_change_is_none(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload(project, store, maps)
    between(nothing, nothing, lambda: work(project, store))
    monitor.monitor(Context())
    assert lines_of(capsys.readouterr().out) == [
        "queued: 0/10 pages 0%",
        "completed: 10/10 pages 100%, 10 done",
    ]


def test_off_a_terminal_each_failure_is_named_once_an_attempt(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nimbus_tasks.batch.retry import retry_pages

    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    retry_pages(project, store)
    between(
        lambda: work(project, store, failing("dist/page-001.html")),
    )
    monitor.monitor(Context())
    lines = lines_of(capsys.readouterr().out)
    assert lines == [
        "retrying: 9/10 pages 90%, 9 done",
        "failed: dist/page-001.html: cannot do dist/page-001.html",
        "partially completed: 10/10 pages 100%, 9 done, 1 failed",
    ]


def test_with_json_a_change_is_an_object_on_a_line_and_the_last_is_the_end(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload(project, store, maps)
    between(nothing, lambda: work(project, store, failing("dist/page-001.html")))
    monitor.monitor(Context(), json=True)
    captured = capsys.readouterr()
    documents = [json.loads(line) for line in captured.out.splitlines()]
    assert [(d["status"], d["finished"]) for d in documents] == [
        ("queued", False),
        ("partially_completed", True),
    ]
    assert all(sum(d["counts"].values()) == d["page_count"] == 10 for d in documents)
    assert captured.err == ""


def test_once_is_one_frame_and_the_end(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = upload(project, store, maps).batch_id
    between()  # it does not wait at all
    view = monitor.monitor(Context(), once=True)
    assert view.status == "queued"
    frame = capsys.readouterr().out
    assert str(batch) in frame
    assert frame.count("0/10 pages") == 1
    assert "\x1b" not in frame


@pytest.mark.parametrize(("times", "code"), [(1, 3), (0, None)])
def test_the_outcome_is_its_exit_code_only_if_asked(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    times: int,
    code: int | None,
) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html", times=times))
    between()
    monitor.monitor(Context())
    if code is None:
        monitor.monitor(Context(), exit_status=True)
    else:
        with pytest.raises(Exit) as ended:
            monitor.monitor(Context(), exit_status=True)
        assert ended.value.code == code


def screen(terminal: FakeTerminal) -> Screen:
    # Signs two columns wide are two cells for our screen of single-width text.
    narrow = re.sub(r"[^\x00-\u2fff]|\ufe0f", "*", terminal.text)
    return Screen(80, 24).feed(narrow.replace("\n", "\r\n"))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """A terminal of 80 columns and 24 lines."""
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    return FakeTerminal()


def test_on_a_terminal_the_block_says_the_end_and_stays(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
) -> None:
    batch = upload(project, store, maps).batch_id
    between(nothing, lambda: work(project, store, failing("dist/page-001.html")))
    with redirect_stdout(terminal):
        monitor.monitor(Context())
    shown = screen(terminal)
    text = "\n".join(shown.shown)
    assert text.count(str(batch)) == 1  # drawn over, not below
    assert "10/10 pages  100%" in text
    assert "dist/page-001.html  broken: cannot do dist/page-001.html" in text
    assert "Ctrl-C" not in text
    assert shown.cursor_shown


def test_the_last_frame_stays_when_the_store_is_lost(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = upload(project, store, maps).batch_id

    def lose_it() -> None:
        raise StoreError("the store has gone")

    between(lose_it)
    with redirect_stdout(terminal), pytest.raises(Exit) as ended:
        monitor.monitor(Context())
    assert ended.value.code == 5
    shown = screen(terminal)
    assert any(str(batch) in line for line in shown.shown)
    assert shown.cursor_shown
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_leaves_the_frame_and_the_cursor(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
) -> None:
    upload(project, store, maps)

    def interrupt() -> None:
        raise KeyboardInterrupt

    between(interrupt)
    with redirect_stdout(terminal), pytest.raises(Exit) as ended:
        monitor.monitor(Context())
    assert ended.value.code == 130
    assert screen(terminal).cursor_shown
    assert "0/10 pages" in "\n".join(screen(terminal).shown)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_the_cursor_comes_back_when_it_is_told_to_end(
    project: Project, store: Store, maps: Path
) -> None:
    import pty

    upload(project, store, maps)
    master, slave = pty.openpty()
    watching = subprocess.Popen(
        invoke_command(project.root, "nimbus.batch.monitor", "--interval=60"),
        cwd=project.root,
        env=environment_for(TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    written: Any = b""
    deadline = time.monotonic() + 20
    while b"Ctrl-C" not in written:
        assert time.monotonic() < deadline
        written += os.read(master, 65536)
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(20) != 0
    os.set_blocking(master, False)
    try:
        while more := os.read(master, 65536):
            written += more
    except OSError:
        pass  # all is read, and the other side is closed
    finally:
        os.close(master)
    assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")
