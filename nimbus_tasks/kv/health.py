"""Facts about the embedded store for ``nimbus.doctor``: versions, space, integrity."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

#: The first SQLite in which two processes cannot corrupt a write-ahead log by resetting it at once.
SAFE_WAL_VERSION = (3, 51, 3)


def sqlite_version() -> str:
    """The version of the SQLite library that this Python uses."""
    return sqlite3.sqlite_version


def has_wal_reset_bug() -> bool:
    """Whether this SQLite has the rare corruption that our lock round checkpoints prevents."""
    return (3, 7, 0) <= sqlite3.sqlite_version_info < SAFE_WAL_VERSION


def free_bytes(folder: Path) -> int:
    """Free space in bytes where ``folder`` lies."""
    return shutil.disk_usage(folder).free


def integrity(path: Path) -> str:
    """``ok``, or the first fault that SQLite finds in the file."""
    with closing(sqlite3.connect(path)) as db:
        try:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            return str(error)
    return str(found)


def journal_mode(path: Path) -> str:
    """``wal``, or what a file system without shared memory (a network share) fell back to."""
    with closing(sqlite3.connect(path)) as db:
        (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    return str(mode)
