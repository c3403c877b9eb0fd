"""Facts about the embedded store for ``nimbus.doctor``: versions and space."""

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
    """What the system says to a small file in ``folder``, of which nothing stays; ``None``: it was
    written. Neither the free space nor the permissions tell of every quota and limit."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = memoryview(bytes(_NEEDED_BYTES))
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        return error
    return None
