"""The lock between processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.lock import FileLock

#: Fresh processes: a fork would inherit the lock's file.
SPAWN = multiprocessing.get_context("spawn")
#: Much longer than anything here takes, so that a slow machine fails no test.
PATIENCE = 60.0


@contextmanager
def lock(path: Path) -> Iterator[FileLock]:
    """A lock of its own, closed at the end."""
    made = FileLock(path)
    try:
        yield made
    finally:
        made.close()


def hold(path: Path, held: Event, enough: Event) -> None:
    """In another process: take the lock, say so, and keep it until told."""
    with lock(path) as mine:
        assert mine.acquire(PATIENCE)
        held.set()
        enough.wait(PATIENCE)
        mine.release()


def write_turns(path: Path, name: str, turns: int) -> None:
    """In another process: write a line at the beginning and at the end of each turn."""
    with lock(path) as mine:
        for _ in range(turns):
            assert mine.acquire(PATIENCE)
            with path.with_suffix(".txt").open("a") as file:
                for line in (f"{name} begins\n", f"{name} ends\n"):
                    file.write(line)
                    file.flush()
            mine.release()


@contextmanager
def held_elsewhere(path: Path) -> Iterator[tuple[BaseProcess, Event]]:
    """A process that holds the lock, and what tells it to let go."""
    held, enough = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(path, held, enough))
    process.start()
    try:
        assert held.wait(PATIENCE)
        yield process, enough
    finally:
        process.kill()
        process.join(PATIENCE)


def test_a_lock_that_nobody_holds_is_taken_at_once(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as mine:
        assert mine.acquire(0)


def test_a_lock_that_another_process_holds_is_not_taken(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "lock"), lock(tmp_path / "lock") as mine:
        assert not mine.acquire(0)
        assert not mine.acquire(0.05)


def test_waiting_for_a_lock_takes_as_long_as_was_said(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as theirs, lock(tmp_path / "lock") as mine:
        assert theirs.acquire(0)
        begun = time.monotonic()

        assert not mine.acquire(0.1)

        assert time.monotonic() - begun >= 0.1


def test_a_lock_that_another_process_lets_go_is_taken(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "lock") as (_, enough), lock(tmp_path / "lock") as mine:
        enough.set()

        assert mine.acquire(PATIENCE)


def test_a_process_that_is_killed_lets_the_lock_go(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "lock") as (process, _), lock(tmp_path / "lock") as mine:
        assert not mine.acquire(0)
        process.kill()

        assert mine.acquire(PATIENCE)


def test_a_lock_can_be_taken_again_and_again(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as mine:
        for _ in range(3):
            assert mine.acquire(0)
            mine.release()


@pytest.mark.parametrize("let_go", [FileLock.release, FileLock.close])
def test_whoever_releases_or_closes_it_lets_the_next_one_in(tmp_path: Path, let_go: object) -> None:
    first = FileLock(tmp_path / "lock")
    with lock(tmp_path / "lock") as second:
        assert first.acquire(0)
        assert not second.acquire(0)
        assert callable(let_go)
        let_go(first)
        assert second.acquire(0)
    if let_go is FileLock.release:
        first.close()


def test_locks_on_two_files_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    with lock(tmp_path / "one") as one, lock(tmp_path / "two") as two:
        assert one.acquire(0)
        assert two.acquire(0)


def test_several_processes_take_turns(tmp_path: Path) -> None:
    names, turns = ["a", "b", "c"], 40
    processes = [
        SPAWN.Process(target=write_turns, args=(tmp_path / "lock", name, turns)) for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = (tmp_path / "lock.txt").read_text().splitlines()
    assert len(lines) == 2 * turns * len(names)
    for begins, ends in zip(lines[::2], lines[1::2], strict=True):
        assert begins.replace("begins", "ends") == ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_holds_no_lock_of_its_parent(tmp_path: Path) -> None:
    """A processor may fork, and its child may live longer than the worker."""
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.acquire(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert not other.acquire(0)
        lock.close()
        assert other.acquire(0)
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        other.close()


def test_a_command_that_waits_for_the_turn_of_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimbus_tasks.kv.lock.SILENT_SECONDS", 0.05)
    told: list[str] = []
    path = tmp_path / "recent.sqlite3"
    with closing(Journal(path, tell=told.append)) as journal:
        with journal.turn():
            assert told == []
        with lock(path.with_name("recent.sqlite3.turn")) as other:
            assert other.acquire(0)
            threading.Timer(0.5, other.release).start()
            with journal.turn():
                assert len(told) == 1
