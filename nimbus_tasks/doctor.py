"""``nimbus.doctor``: is everything there that the tasks need? What to do about each fault."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.command import JSON_HELP, Console, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import NimbusError, StoreError, UsageError
from nimbus_tasks.core.keys import queue_prefix
from nimbus_tasks.core.project import Project, config_path, load_project
from nimbus_tasks.ui.figures import pages, size
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean

#: A batch of 10,000 real pages takes about as much.
_LOW_SPACE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``level`` is ``ok``, ``warning`` or ``error``; an error has the
    exit code that it would give any other command."""

    name: str
    level: str
    detail: str
    advice: str | None = None
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """An item of the document."""
        return {
            "name": self.name,
            "level": self.level,
            "detail": self.detail,
            "advice": self.advice,
        }


def examine(root: Path) -> list[Check]:
    """Every check of the project in ``root``, none of which changes anything."""
    return [*_versions(), *_project(root)]


def _versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    names = ("nimbus-tasks", "invoke", "requests", "tqdm", "colorama")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    yield Check("versions", "ok", f"Python {python}, {versions}")


def _version(name: str) -> str:
    from importlib import metadata  # takes as long to import as all of nimbus_tasks

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _project(root: Path) -> Iterator[Check]:
    try:
        project = load_project(root)
    except UsageError as error:
        yield Check("configuration", "error", error.message, error.advice, error.exit_code)
        return
    yield Check(
        "configuration", "ok",
        f"{config_path(root)}: project {project.project_id}, store {project.store}",
    )  # fmt: skip
    yield _folder(project)
    yield from _store(project)


def _folder(project: Project) -> Check:
    from nimbus_tasks.kv.health import free_bytes

    if not os.access(project.folder, os.W_OK):
        return Check(
            "folder",
            "error",
            f"{project.folder} cannot be written",
            "Give yourself the right to write there.",
            StoreError.exit_code,
        )
    free = free_bytes(project.folder)
    if free < _LOW_SPACE_BYTES:
        return Check(
            "folder",
            "warning",
            f"only {size(free)} free for {project.folder}",
            "Free some space before a large upload.",
        )
    return Check("folder", "ok", f"{project.folder} can be written, {size(free)} free")


def _store(project: Project) -> Iterator[Check]:
    from nimbus_tasks.kv import health

    path, version = project.store_path, health.sqlite_version()
    note = ""
    if health.has_wal_reset_bug():
        note = " (can corrupt a log that two processes reset at once; our lock prevents that)"
    yield Check("sqlite", "ok", f"SQLite {version}{note}")
    if not path.exists():
        yield Check("store", "ok", f"no store yet; the first upload makes {path}")
        return
    try:
        with project.open_store() as store, store.snapshot() as reading:
            heads = batches.heads(reading, project.project_id)
            queued = sum(1 for _ in reading.scan(queue_prefix(project.project_id)))
            open_heads = [head for head in heads if not head.is_final]
            stalled = sum(len(batches.look(reading, h, utc_now()).stalled) for h in open_heads)
            faults = store.faults()
    except NimbusError as error:
        yield Check("store", "error", error.message, error.advice, error.exit_code)
        return
    if faults:
        advice = "Move it to a local disk and upload again, or restore a backup."
        yield Check("store", "error", "; ".join(faults), advice, StoreError.exit_code)
        return
    found = f"{path}, {size(path.stat().st_size)}: {len(heads):,} batches, {pages(queued)} queued"
    yield Check("store", "ok", found)
    if stalled:
        yield Check(
            "claims",
            "warning",
            f"{pages(stalled)} of workers that have gone",
            "The next invoke nimbus.worker takes them up.",
        )


@command(help={"json": JSON_HELP})
def doctor(c: Context, json: bool = False) -> list[Check]:
    """Check that all is well; say what to do."""
    console = Console(json_only=json)
    checks = examine(project_root(c))
    faults = [check for check in checks if check.level == "error"]
    if json:
        console.document({"ok": not faults, "checks": [check.to_json() for check in checks]})
    else:
        for check in checks:
            console.say(*_lines(check, console.style))
    if faults:
        raise Exit(code=faults[0].exit_code)
    return checks


def _lines(check: Check, style: Style) -> list[str]:
    lines = [f"{style.sign(check.level)} {style.bold(check.name)}: {clean(check.detail)}"]
    if check.advice:
        lines.append(f"   → {clean(check.advice)}")
    return lines
