"""The file of the embedded store: where it may be made, and what SQLite's errors say of it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from nimbus_tasks.core.errors import FULL, DamagedStoreError, StoreError, cannot_write
from nimbus_tasks.kv.health import why_unwritable


def check_place(path: Path, create: bool) -> None:
    """Raises :class:`StoreError` where nothing is that could be opened, or be made."""
    if path.exists():
        if not path.is_file():
            raise DamagedStoreError(
                f"cannot open the store {path}: that is no file",
                advice="Move it away; the next upload makes a new store.",
            )
        return
    is_link, target = path.is_symlink(), Path(os.path.realpath(path))
    if is_link and (not create or target.is_symlink() or not target.parent.is_dir()):
        raise StoreError(
            f"there is no store at {path}: it is a link to {path.readlink()}, which is not there",
            advice="Bring back what it leads to, or remove the link and upload again.",
        )
    if not create:
        raise StoreError(
            f"there is no store at {path}",
            advice="Upload some pages first: invoke nimbus.upload",
        )


def make_private(path: Path) -> None:
    """Make the file empty, for its owner alone, as SQLite then makes those beside it: pages may be
    unpublished. Nobody loses by it: to read the store is to write to its log and its lock."""
    with suppress(FileExistsError):  # another process was first
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """What an error of SQLite's means for this file, and what to do."""
    text = str(error)
    if "not a database" in text or "malformed" in text or "no such table" in text:
        return DamagedStoreError(
            f"the store {path} is damaged ({text})",
            advice="Move it away and upload again, or restore it from a backup.",
        )
    if "disk is full" in text:
        return _no_space(path)
    if "disk I/O error" in text or "unable to open" in text or "readonly" in text:
        # SQLite does not tell why: that no space is left for its log's index is an "I/O error".
        cause = why_unwritable(path.parent)
        if cause is not None and cause.errno in FULL:
            return _no_space(path)
        if cause is not None:
            return cannot_write(f"the store {path}", cause)
    if "readonly" in text or "unable to open" in text:
        return StoreError(
            f"cannot open the store {path} for writing ({text})",
            advice="Check the permissions of the file, of those beside it and of its folder.",
        )
    if "disk I/O error" in text:
        return StoreError(
            f"the store {path} cannot be read or written ({text})",
            advice="See that its disk is in order, and that no quota and no limit of a file's size"
            " is reached; then run the command again.",
        )
    return StoreError(f"the store {path} failed: {text}", advice="Try: invoke nimbus.doctor")


def _no_space(path: Path) -> StoreError:
    return StoreError(
        f"no space left for the store {path}",
        advice="Nothing of this step was kept. Free some space and run the command again.",
    )
