"""A lock between processes, on a file, that a killed process leaves released.

SQLite's own waiting is unfair under contention: the worst of several writers waited seconds. With
this lock held round each write transaction and checkpoint it is a few tenths of a second at the
worst, with fourteen processes writing (``tests/kills/test_crowd.py`` prints it).
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

#: Short, so that a waiter finds the gap between two transactions of a busy worker.
_POLL_SECONDS = 0.002
#: Longer than a turn takes of another that is not very busy.
SILENT_SECONDS = 3.0


class FileLock:
    """An exclusive advisory lock on ``path``. Not reentrant; use it from one thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        _open_locks.add(self)

    def acquire(self, timeout: float, still_waiting: Callable[[], None] = lambda: None) -> bool:
        """Take the lock; ``False`` if somebody holds it for longer than ``timeout`` seconds.

        Who waits longer than a person wonders about is told so once, by ``still_waiting``.
        """
        begun, is_told = time.monotonic(), False
        while not _try_lock(self._fd):
            waited = time.monotonic() - begun
            if waited >= timeout:
                return False
            if waited >= SILENT_SECONDS and not is_told:
                is_told = True
                still_waiting()
            time.sleep(_POLL_SECONDS * random.uniform(0.5, 1.5))
        return True

    def fileno(self) -> int:
        """The file's descriptor: a process that inherits it holds what we hold."""
        return self._fd

    def release(self) -> None:
        """Let the next one in."""
        _unlock(self._fd)

    def close(self) -> None:
        """Release the lock if it is held, and give the file back."""
        if self._fd >= 0:  # a number that was closed may be another's by now
            _unlock(self._fd)
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """Close the file without releasing what another process holds through it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


#: A child that a processor forks has our files open: as long as it lives, it would hold our locks.
_open_locks: WeakSet[FileLock] = WeakSet()


def _forget_all() -> None:
    for lock in list(_open_locks):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        with contextlib.suppress(OSError):  # it was not held
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
