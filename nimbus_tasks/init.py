"""``nimbus.init``: writes the project's configuration, ``.nimbus/project-config.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import JSON_HELP, check_text, command, project_root
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.keys import check_id
from nimbus_tasks.core.project import (
    QUEUES,
    STORES,
    Project,
    check_layout,
    config_path,
    load_project,
    new_project,
    save_project,
)
from nimbus_tasks.kv.cloudflare import check_config, checked_queue
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.text import clean, clip

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
    cloudflare: Mapping[str, str | None] | None = None,
    force: bool = False,
) -> Initialised:
    """Write the configuration of a project in ``root``.

    ``cloudflare`` has ``account_id``, ``namespace_id``, ``queue_id`` and ``api_base``, each as far
    as it is given. Raises :class:`UsageError` where there is a project already, or for a bad
    option. With ``force``, what is not given stays as it was, as far as the old one can be read:
    its id is what finds the pages.
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
    project = new_project(root, name=name, project_id=project_id)
    if old is not None:
        project = replace(
            old,
            project_id=project_id or old.project_id,
            name=name or old.name,
            created=old.created or project.created,
        )
    project = replace(project, store=store or project.store, queue=queue or project.queue)
    given = {key: value for key, value in (cloudflare or {}).items() if value is not None}
    if given and project.store != "cloudflare":
        raise UsageError(
            f"--{next(iter(given)).replace('_', '-')} is of no use to the store {project.store}",
            advice="Give --store=cloudflare with it.",
        )
    check_layout(project.store, project.queue)
    if "queue_id" in given and not project.is_shared:
        raise UsageError(
            f"--queue-id is of no use to the queue {project.queue}",
            advice="Give --queue=cloudflare-queues with it.",
        )
    project = replace(project, cloudflare={**project.cloudflare, **given})
    if project.store == "cloudflare":
        check_config(project.cloudflare, os.environ)
    if project.is_shared:
        checked_queue(project.cloudflare)
    save_project(project)
    return Initialised(project, path)


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
        "queue": f"how the queue is kept: {', '.join(QUEUES)} (default: keys)",
        "namespace-id": "Cloudflare: the id of the KV namespace",
        "queue-id": "Cloudflare: the id of the queue, for --queue=cloudflare-queues",
        "account-id": "Cloudflare: the account (default: CLOUDFLARE_ACCOUNT_ID)",
        "api-base": "Cloudflare: another API prefix, as that of wrangler's local server",
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
    namespace_id: str | None = None,
    queue_id: str | None = None,
    account_id: str | None = None,
    api_base: str | None = None,
    force: bool = False,
    json: bool = False,
) -> Initialised:
    """Write the project's configuration.

    Example: invoke nimbus.init --name=shop
    """
    console = Console(json_only=json)
    cloudflare = {
        "namespace_id": namespace_id,
        "queue_id": queue_id,
        "account_id": account_id,
        "api_base": api_base,
    }
    made = init_project(
        project_root(c),
        name=name,
        project_id=project_id,
        store=store,
        queue=queue,
        cloudflare={
            key: check_text(value, f"--{key.replace('_', '-')}", stored=True)
            for key, value in cloudflare.items()
        },
        force=force,
    )
    if json:
        console.document(made.to_json())
    else:
        style, name = console.style, clip(clean(made.project.name), MAX_NAME_LENGTH)
        console.say(
            f"{style.sign('ok')} {clean(made.path)}",
            f"   project {style.bold(made.project.project_id)}, {name}",
            style.dim(
                "   next: invoke nimbus.doctor"
                if made.project.store == "cloudflare"
                else "   next: put content maps into .nimbus/maps and run: invoke nimbus.upload"
            ),
        )
    return made
