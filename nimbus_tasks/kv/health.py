"""The embedded store's version and its disk: for ``nimbus.doctor``, and for the store's errors."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

#: What SQLite needs at the least beside an empty log: its index of it, and the log's first pages.
_NEEDED_BYTES = 65_536


def sqlite_version() -> str:
    """The version of the SQLite library that this Python uses."""
    return sqlite3.sqlite_version


def free_bytes(folder: Path) -> int:
    """Free space in bytes where ``folder`` lies."""
    return shutil.disk_usage(folder).free


def why_unwritable(folder: Path) -> OSError | None:
    """The error with which the system refuses a small file in ``folder``; ``None`` if it takes it.
    Nothing stays of the file. Free space and permissions do not tell of every quota and limit."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = memoryview(bytes(_NEEDED_BYTES))
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        return error
    return None
