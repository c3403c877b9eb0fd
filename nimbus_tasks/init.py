"""``nimbus.init``: writes the project's configuration, ``.nimbus/project-config.json``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import JSON_HELP, Console, check_text, command, project_root
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.keys import check_id
from nimbus_tasks.core.project import (
    QUEUES,
    STORES,
    Project,
    config_path,
    load_project,
    new_project,
    save_project,
)
from nimbus_tasks.ui.text import clean

MAX_NAME_LENGTH = 200


@dataclass(frozen=True)
class Initialised:
    """The project, and the file that describes it."""

    project: Project
    path: Path

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {**self.project.to_config(), "path": str(self.path)}


def init_project(
    root: Path,
    *,
    name: str | None = None,
    project_id: str | None = None,
    store: str | None = None,
    queue: str | None = None,
    force: bool = False,
) -> Initialised:
    """Write the configuration of a project in ``root``.

    Raises :class:`UsageError` where there is one already, or for a bad option. With ``force``, what
    is not given stays as it was, as far as the old one can be read: its id is what finds the pages.
    """
    path = config_path(root)
    if path.exists() and not force:
        raise UsageError(
            f"there is a project already: {path}", advice="Give --force to write it anew."
        )
    for option, value, known in (("--store", store, STORES), ("--queue", queue, QUEUES)):
        if value is not None and value not in known:
            raise UsageError(
                f"{option} {value[:40]!r} is not known to this version",
                advice=f"It knows: {', '.join(known)}",
            )
    name = check_text(name, "--name", stored=True)
    if name is not None and len(name) > MAX_NAME_LENGTH:
        raise UsageError(f"--name takes 1 to {MAX_NAME_LENGTH} characters")
    if project_id is not None:
        check_id(project_id, "project id")
    old = _old_project(root)
    project = new_project(root, name=name or default_name(root), project_id=project_id)
    if old is not None:
        project = replace(
            project,
            project_id=project_id or old.project_id,
            name=name or old.name,
            created=old.created or project.created,
            extra=old.extra,
        )
    save_project(project)
    return Initialised(project, path)


def default_name(root: Path) -> str:
    """A project is called like its folder, whose name need not be text."""
    return root.name.encode("utf-8", "replace").decode()


def _old_project(root: Path) -> Project | None:
    try:
        return load_project(root)
    except UsageError:
        return None  # there is none, or it cannot be read, which is why it is written anew


@command(
    help={
        "name": "the project's name (default: that of its folder)",
        "project-id": "its id in the store's keys (default: a new one)",
        "store": f"where pages are kept: {' or '.join(STORES)} (default: sqlite)",
        "queue": f"how the queue is kept: {' or '.join(QUEUES)} (default: keys)",
        "force": "write the configuration anew where there is one",
        "json": JSON_HELP,
    }
)
def init(
    c: Context,
    name: str | None = None,
    project_id: str | None = None,
    store: str | None = None,
    queue: str | None = None,
    force: bool = False,
    json: bool = False,
) -> Initialised:
    """Write the project's configuration."""
    console = Console(json_only=json)
    made = init_project(
        project_root(c), name=name, project_id=project_id, store=store, queue=queue, force=force
    )
    if json:
        console.document(made.to_json())
    else:
        style = console.style
        console.say(
            f"{style.sign('ok')} {clean(made.path)}",
            f"   project {style.bold(made.project.project_id)}, {clean(made.project.name)}",
            style.dim("   next: put content maps into .nimbus/maps and run: invoke nimbus.upload"),
        )
    return made
