"""The monitor: lines and objects off a terminal, a block on one; its last look stays."""

from __future__ import annotations

import _thread
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch import monitor
from nimbus_tasks.batch.monitor import watch
from nimbus_tasks.core import clock
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import environment_for, failing, invoke_command, upload, work, write_maps
from tests.ui.terminal import FakeTerminal, Screen

Meanwhile = Callable[[], object]


@pytest.fixture
def between(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what happens between two looks of the monitor, in the place of waiting: with a store of
    its own, since the monitor looks from another thread."""
    monkeypatch.chdir(project.root)

    def happens(*steps: Meanwhile) -> None:
        remaining = iter(steps)

        def pause(stop: threading.Event, seconds: float) -> None:
            next(remaining)()

        monkeypatch.setattr(watch, "pause", pause)

    return happens


def works(project: Project, *failing_paths: str) -> Meanwhile:
    """A worker comes by."""

    def step() -> None:
        with project.open_store() as store:
            work(project, store, failing(*failing_paths))

    return step


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
    batch = upload(project, store, maps).batch_id
    between(nothing, nothing, works(project))
    monitor.monitor(Context())
    assert lines_of(capsys.readouterr().out) == [
        "queued: 0/10 pages 0%",
        "completed: 10/10 pages 100%, 10 done",
        f"next: invoke nimbus.batch.report --batch={batch} --open",
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
    between(works(project, "dist/page-001.html"))
    monitor.monitor(Context())
    lines = lines_of(capsys.readouterr().out)
    assert lines[:3] == [
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
    between(nothing, works(project, "dist/page-001.html"))
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
    monkeypatch.delenv("CI", raising=False)
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
    between(nothing, works(project, "dist/page-001.html"))
    with redirect_stdout(terminal):
        monitor.monitor(Context())
    shown = screen(terminal)
    text = "\n".join(shown.shown)
    assert text.count(f"{batch}  ") == 1  # drawn over, not below
    assert "10/10 pages  100%" in text
    assert "dist/page-001.html  broken: cannot do dist/page-001.html" in text
    assert "Ctrl-C" not in text
    assert shown.cursor_shown


def test_a_store_that_is_lost_is_waited_for_and_the_age_of_the_frame_is_shown(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = upload(project, store, maps).batch_id
    path, away = project.store_path, project.root / "away"

    def until_shown(words: str) -> None:
        while words not in terminal.text:
            time.sleep(0.01)

    between(
        lambda: path.rename(away),
        lambda: until_shown("deleted"),
        lambda: until_shown("there is no store"),
        lambda: away.rename(path),
        works(project),
    )
    monkeypatch.setenv("COLUMNS", "200")  # the whole message is to be seen
    with redirect_stdout(terminal):
        assert monitor.monitor(Context()).status == "completed"
    assert re.search(r"this is \S+ m?s old: the store .*", terminal.text)
    assert re.search(r"this is \S+ m?s old: there is no store at", terminal.text)
    shown = screen(terminal)
    assert "old:" not in "\n".join(shown.shown)
    assert any(str(batch) in line for line in shown.shown)
    assert shown.cursor_shown


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_change_the_age_of_a_look(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return super().now(tz) + timedelta(hours=hours)

    upload(project, store, maps)
    path, away = project.store_path, project.root / "away"
    between(
        lambda: path.rename(away),
        lambda: monkeypatch.setattr(clock, "datetime", Shifted),
        lambda: away.rename(path),
        works(project),
    )
    ages = {bool(sight.trouble): sight.age for sight in watch.follow(project)}
    assert set(ages) == {True, False}
    assert all(0 <= age < 60 for age in ages.values())


def test_a_store_that_does_not_answer_ends_nothing_but_the_time_that_was_given(
    project: Project, store: Store, maps: Path, between: Callable[..., None]
) -> None:
    upload(project, store, maps)
    between(project.store_path.unlink, nothing, lambda: time.sleep(0.05), nothing)
    with pytest.raises(Exit) as ended:
        monitor.monitor(Context(), timeout="0.04")
    assert ended.value.code == 6


def test_a_batch_that_is_gone_with_its_store_ends_it(
    project: Project, store: Store, maps: Path, between: Callable[..., None]
) -> None:
    upload(project, store, maps)

    def replace_it() -> None:
        project.store_path.unlink()
        with project.open_store(create=True):
            pass

    between(replace_it, nothing)
    with pytest.raises(Exit) as ended:
        monitor.monitor(Context())
    assert ended.value.code == 4


def test_a_burst_of_failures_is_some_and_a_number(
    project: Project,
    store: Store,
    between: Callable[..., None],
    terminal: FakeTerminal,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_maps(project.folder / "many", 80)
    upload(project, store, project.folder / "many")
    paths = [f"dist/page-{n:03d}.html" for n in range(80)]
    between(works(project, *paths))
    with redirect_stdout(terminal):
        monitor.monitor(Context())
    assert len(re.findall(r"❌ dist/page-\d+\.html", terminal.text)) == 10
    assert "❌ and 70 more failed" in terminal.text

    monitor.monitor(Context())
    lines = lines_of(capsys.readouterr().out)
    assert sum(line.startswith("failed: dist/page-") for line in lines) == 10
    assert "failed: and 70 more" in lines


def test_ctrl_c_says_that_the_batch_goes_on_and_how_to_come_back(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = upload(project, store, maps).batch_id

    def interrupt() -> None:
        while "0/10 pages" not in terminal.text:
            time.sleep(0.01)
        _thread.interrupt_main()

    between(interrupt)
    with redirect_stdout(terminal), pytest.raises(Exit) as ended:
        monitor.monitor(Context())
    assert ended.value.code == 130
    assert screen(terminal).cursor_shown
    assert "0/10 pages" in "\n".join(screen(terminal).shown)
    assert f"invoke nimbus.batch.monitor --batch={batch}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "can"),
    [({}, True), ({"CI": "false"}, True), ({"CI": "true"}, False), ({"TERM": "dumb"}, False)],
)
def test_where_nothing_can_be_drawn_over_there_are_lines(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    terminal: FakeTerminal,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    can: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    upload(project, store, maps)
    between(works(project))
    with redirect_stdout(terminal):
        monitor.monitor(Context())
    assert ("\x1b[?25l" in terminal.text) == can
    assert ("queued: 0/10 pages" in terminal.text) != can


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
        env=environment_for(TERM="xterm", CI=""),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    written: Any = b""
    while b"Ctrl-C" not in written:
        assert select.select([master], [], [], 20)[0], written
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
