"""``nimbus.doctor``: is everything there that the tasks need? What to do about each fault."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.command import (
    JSON_HELP,
    SETTINGS,
    command,
    configured,
    project_root,
    section_of,
    unknown_settings,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import (
    NimbusError,
    StoreError,
    UsageError,
    cannot_write,
)
from nimbus_tasks.core.keys import tick_key
from nimbus_tasks.core.project import Project, config_path, load_project
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import pages, size
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, wrap
from nimbus_tasks.versions import version_of

#: A batch of 10,000 real pages takes about as much.
_LOW_SPACE_BYTES = 1_000_000_000
#: Each worker that stops with a message in hand gives it back, which counts as a retry.
_FEW_RETRIES = 10


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``level`` is ``ok``, ``warning`` or ``error``; the exit code of
    an error is the one with which any other command would meet it."""

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


def examine(root: Path, config: Mapping[str, Any] | None = None) -> list[Check]:
    """Every check of the project in ``root``, none of which changes anything.

    ``config`` is Invoke's: what ``invoke.yaml`` sets.
    """
    return [*_versions(), *_settings({} if config is None else config), *_project(root)]


def _versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    names = ("nimbus-tasks", "invoke", "requests", "tqdm", "colorama")
    versions = ", ".join(f"{name} {version_of(name)}" for name in names)
    yield Check("versions", "ok", f"Python {python}, {versions}")


def _settings(config: Mapping[str, Any]) -> Iterator[Check]:
    """What is set under ``nimbus:`` and in the environment, checked as the tasks would."""
    sound = []
    for section, known in SETTINGS.items():
        try:
            section_of(section_of(config, "nimbus"), section, "nimbus.")
        except UsageError as error:
            yield Check("settings", "error", error.message, error.advice, error.exit_code)
            return
        for name, check in known.items():
            setting, value = f"nimbus.{section}.{name}", configured(config, section, name)
            try:
                check(value, setting)
            except UsageError as error:
                yield Check("settings", "error", error.message, error.advice, error.exit_code)
            else:
                sound += [] if value is None else [setting]
    for unknown, there_are in unknown_settings(config):
        yield Check(
            "settings",
            "warning",
            f"{unknown} in invoke.yaml is no setting and does nothing",
            f"There are: {', '.join(there_are)}",
        )
    if sound:
        yield Check("settings", "ok", f"{', '.join(sound)} set in invoke.yaml or the environment")


def _project(root: Path) -> Iterator[Check]:
    try:
        project = load_project(root)
    except UsageError as error:
        yield Check("configuration", "error", error.message, error.advice, error.exit_code)
        yield _folder(root / ".nimbus")
        return
    yield Check(
        "configuration", "ok",
        f"{config_path(root)}: project {project.project_id}, store {project.store}",
    )  # fmt: skip
    yield _folder(project.folder)
    yield from _cloudflare(project) if project.store == "cloudflare" else _embedded(project)
    yield from _wrangler(project)


def _wrangler(project: Project) -> Iterator[Check]:
    """Whether what ``nimbus.cloud.*`` need is there, where the project has a Worker."""
    from nimbus_tasks.cloud.init import FOLDER
    from nimbus_tasks.cloud.wrangler import CONFIG_NAME, load_worker, wrangler_version

    folder = project.root / FOLDER
    if not (folder / CONFIG_NAME).exists():
        return
    try:
        load_worker(folder)
        yield Check("wrangler", "ok", f"wrangler {wrangler_version(folder, project.root)} runs")
    except UsageError as error:
        yield Check("wrangler", "warning", f"nimbus.cloud.*: {error.message}", error.advice)


def _folder(folder: Path) -> Check:
    """Whether files can be written in ``folder``, or, if it is still to be made, in the nearest
    folder above it."""
    from nimbus_tasks.kv.health import free_bytes, why_unwritable

    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    cause = why_unwritable(there)
    if cause is not None:
        error = cannot_write(f"to {there}", cause)
        return Check("folder", "error", error.message, error.advice, error.exit_code)
    free = free_bytes(there)
    if free < _LOW_SPACE_BYTES:
        return Check(
            "folder",
            "warning",
            f"only {size(free)} free for {there}",
            "Free some space before a large upload.",
        )
    return Check("folder", "ok", f"{there} can be written, {size(free)} free")


def _embedded(project: Project) -> Iterator[Check]:
    from nimbus_tasks.kv import health

    path = project.store_path
    yield Check("sqlite", "ok", f"SQLite {health.sqlite_version()}")
    if not path.exists() and not path.is_symlink():
        yield Check("store", "ok", f"no store yet; the first upload makes {path}")
        return
    if path.is_file() and not path.stat().st_size:  # to open it is to make it
        yield Check(
            "store",
            "warning",
            f"{path} is empty: its making was cut off, or it has lost all it had",
            "Put it back from a backup if it had batches; else the next upload makes it.",
        )
        return
    if path.is_file():
        yield from _privacy(path)
    yield from _records(
        project, f"{path}, {size(path.stat().st_size)}" if path.exists() else str(path)
    )


def _privacy(path: Path) -> Iterator[Check]:
    """Pages may be unpublished: a store of an older version, or a copy, may be open to others."""
    if os.name == "posix" and path.stat().st_mode & 0o007:
        yield Check(
            "privacy",
            "warning",
            f"{path} is open to every user of this machine",
            f"Keep its pages to yourself: chmod o= {shlex.quote(str(path))}*",
        )


def _cloudflare(project: Project) -> Iterator[Check]:
    from nimbus_tasks.kv.cloudflare import open_client
    from nimbus_tasks.kv.cloudflare.checkup import check_up

    try:
        with open_client(project.cloudflare, os.environ) as client:
            for step in check_up(client, project.project_id):
                level = "warning" if step.lags else "ok"
                advice = "Reads of KV lag by a minute or so." if step.lags else None
                yield Check(step.name, level, step.detail, advice)
    except NimbusError as error:
        yield Check("cloudflare", "error", error.message, error.advice, error.exit_code)
        return
    if project.is_shared:
        yield (queue := _queue(project))
        if queue.level == "error":
            return
    yield from _records(project, f"namespace {project.cloudflare.get('namespace_id')}")


def _queue(project: Project) -> Check:
    """Whether there is the queue, and whether it hands out messages to these tasks."""
    from nimbus_tasks.kv.cloudflare import open_queue

    try:
        with closing(open_queue(project.cloudflare, os.environ)) as queue:
            told, waiting = queue.describe(), queue.backlog()
    except NimbusError as error:
        return Check("queue", "error", error.message, error.advice, error.exit_code)
    if not told.can_be_pulled:
        return Check(
            "queue",
            "error",
            f"the queue {told.name} hands out no messages over HTTP",
            f"Give it a pull consumer: wrangler queues consumer http add {told.name}",
            StoreError.exit_code,
        )
    many = "1 message" if waiting == 1 else f"{waiting:,} messages"
    if told.max_retries is not None and told.max_retries < _FEW_RETRIES:
        return Check(
            "queue",
            "warning",
            f"the queue {told.name} gives a message up after {told.max_retries} retries; {many}",
            "Its page is queued anew then, minutes later. Let it have 100 retries.",
        )
    return Check("queue", "ok", f"the queue {told.name} answers, about {many} in it")


def _records(project: Project, where: str) -> Iterator[Check]:
    """What the store holds, and whether it is sound."""
    try:
        with project.open_store() as store, store.snapshot() as reading:
            heads = batches.heads(reading, project.project_id)
            queued = stalled = 0
            for head in heads:
                if not head.is_final:  # one look at a time: each holds what its pages took
                    look = batches.look(reading, head, utc_now())
                    queued += look.tally.counts["queued"]
                    stalled += len(look.stalled)
            has_ticked = reading.get(tick_key(project.project_id)) is not None
            faults = store.faults()
    except NimbusError as error:
        advice = error.advice
        if advice is not None and "nimbus.doctor" in advice:  # which is what has been run
            advice = "Put a backup in its place, or move it away and upload again."
        yield Check("store", "error", error.message, advice, error.exit_code)
        return
    if faults:
        advice = "Move it to a local disk and upload again, or restore a backup."
        yield Check("store", "error", "; ".join(faults), advice, StoreError.exit_code)
        return
    some = "1 batch" if len(heads) == 1 else f"{len(heads):,} batches"
    yield Check("store", "ok", f"{where}: {some}, {pages(queued)} queued")
    if has_ticked and project.engine == "python":
        yield Check(
            "worker",
            "warning",
            "a Worker has been at work here, which the configuration does not name: the"
            " commands ask for nimbus.worker, and the two would do pages twice",
            "If it is still deployed, run invoke nimbus.cloud.deploy, or set"
            f" cloudflare.worker_namespace_id in {config_path(project.root)} to the namespace_id.",
        )
    if stalled:
        yield Check(
            "claims",
            "warning",
            f"{pages(stalled)} of workers that have gone",
            "The next invoke nimbus.worker takes them up."
            if project.engine == "python"
            else "The Worker's next tick takes them up.",
        )


@command(help={"json": JSON_HELP})
def doctor(c: Context, json: bool = False) -> list[Check]:
    """Check that all is well; say what to do.

    Example: invoke nimbus.doctor
    """
    console = Console(json_only=json)
    checks = examine(project_root(c), {"nimbus": c.config.get("nimbus")})
    faults = [check for check in checks if check.level == "error"]
    if json:
        console.document({"ok": not faults, "checks": [check.to_json() for check in checks]})
    else:
        for check in checks:
            # A log is searched by line.
            columns = console.columns if console.is_terminal else sys.maxsize
            console.say(*_lines(check, console.style, columns))
    if faults:
        raise Exit(code=faults[0].exit_code)
    return checks


def _lines(check: Check, style: Style, columns: int) -> list[str]:
    name, indent = f"{check.name}: ", 3
    first, *rest = wrap(name + clean(check.detail), columns, indent=indent)
    lines = [f"{style.sign(check.level)} {style.bold(check.name)}{first[len(check.name) :]}", *rest]
    if check.advice:
        first, *more = wrap(clean(check.advice), columns, indent=indent + 2)
        lines += [f"→ {first}", *(f"  {line}" for line in more)]
    return [lines[0], *(f"   {line}" for line in lines[1:])]
