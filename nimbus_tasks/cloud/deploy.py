"""``nimbus.cloud.deploy``: the Worker to Cloudflare, with what it needs there: namespace, queues,
secrets. What is there already is left as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from invoke.context import Context

from nimbus_tasks.cloud.init import worker_folder
from nimbus_tasks.cloud.wrangler import (
    NO_NAMESPACE,
    WorkerConfig,
    find_wrangler,
    load_worker,
    run_wrangler,
)
from nimbus_tasks.command import JSON_HELP, command, project_root
from nimbus_tasks.core.errors import StoreError, UsageError
from nimbus_tasks.core.project import Project, load_project, save_project, write_atomically
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.text import clean

#: Taken from the environment, where they are set, and given to wrangler on its stdin.
SECRETS = ("PROCESSOR_SECRET", "LLM_API_KEY")
_ADDRESSES = ("PROCESSOR_URL", "LLM_URL")
_ID = re.compile(r'"?id"?\s*[:=]\s*"([0-9a-f]{32})"')
_NO_QUEUE = re.compile(r"does not exist|not found|code: 11000", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One thing to be done: what it is for, and wrangler's arguments. ``secret`` names the variable
    whose value goes to its stdin. ``unless`` are arguments of a question to wrangler: where that
    succeeds, the step is done already."""

    what: str
    arguments: tuple[str, ...]
    secret: str | None = None
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployed:
    """What was done, or with ``dry_run`` wrangler's command lines that would do it."""

    name: str
    namespace_id: str | None
    steps: list[str]
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "name": self.name,
            "namespace_id": self.namespace_id,
            "steps": self.steps,
            "dry_run": self.dry_run,
        }


def plan(worker: WorkerConfig, environment: Mapping[str, str]) -> list[Step]:
    """What a deployment does, in its order."""
    steps = []
    if not worker.has_namespace:
        steps.append(
            Step("make the KV namespace", ("kv", "namespace", "create", f"{worker.name}-pages"))
        )
    steps += [
        Step(
            f"make the queue {queue}, unless it is there",
            ("queues", "create", queue),
            unless=("queues", "info", queue),
        )
        # The dead letters' first: the other's consumer names it.
        for queue in sorted(worker.queues, key=lambda name: not name.endswith("-dead"))
    ]
    steps.append(Step("deploy the Worker", ("deploy",)))
    steps += [
        Step(f"store the secret {name}", ("secret", "put", name), secret=name)
        for name in SECRETS
        if environment.get(name)
    ]
    return steps


def check_worker(worker: WorkerConfig, project: Project) -> None:
    """Raises :class:`UsageError` for what would not work on Cloudflare."""
    if project.engine == "dev":
        raise UsageError(
            "this is the configuration of nimbus.cloud.dev, whose KV is on this machine",
            advice="Deploy with the project's own: unset NIMBUS_CONFIG.",
        )
    if worker.project_id != project.project_id:
        raise UsageError(
            f"the Worker is of project {worker.project_id}, and this one is {project.project_id}",
            advice=f"Change vars.PROJECT_ID in {worker.path}.",
        )
    for name in _ADDRESSES:
        address = worker.variables.get(name)
        if address is not None and not _is_public(str(address)):
            raise UsageError(
                f"{name} is {str(address)[:60]!r}, which Cloudflare cannot reach",
                advice=f"Set it to an https:// address in {worker.path}.",
            )
    ours = project.cloudflare.get("namespace_id")
    if worker.has_namespace and project.store == "cloudflare" and ours != worker.namespace_id:
        raise UsageError(
            f"the Worker has namespace {worker.namespace_id}, and the project {ours}",
            advice=f"Write the project's into {worker.path}.",
        )


def deploy_worker(
    worker: WorkerConfig,
    environment: Mapping[str, str],
    program: str,
    tell: Callable[[str], None] = lambda _: None,
) -> Deployed:
    """Do what :func:`plan` says, step after step; what is done stays done if a later one fails.

    Raises :class:`UsageError` where nobody is logged in, :class:`StoreError` where Cloudflare
    refuses.
    """
    done = []
    for step in plan(worker, environment):
        if step.unless and _succeeds(program, worker.folder, step.unless):
            continue
        tell(step.what)
        secret = environment[step.secret] if step.secret else None
        said = run_wrangler(program, worker.folder, step.arguments, secret)
        if step.arguments[0] == "kv":
            worker = _with_namespace(worker, said)
        done.append(step.what)
    return Deployed(worker.name, worker.namespace_id, done)


def note_worker(project: Project, deployed: Deployed) -> None:
    """Let the project know which namespace's pages the Worker takes up: the commands say so."""
    told = {**project.cloudflare, "worker_namespace_id": deployed.namespace_id}
    if told != dict(project.cloudflare):
        save_project(replace(project, cloudflare=told))


def _succeeds(program: str, folder: Path, arguments: tuple[str, ...]) -> bool:
    try:
        run_wrangler(program, folder, arguments)
    except StoreError as error:
        if _NO_QUEUE.search(error.message):
            return False
        raise
    return True


def _with_namespace(worker: WorkerConfig, said: str) -> WorkerConfig:
    """The Worker with the namespace that wrangler has made, written into its configuration."""
    found = _ID.search(said)
    if found is None:
        raise StoreError(
            "wrangler made a namespace and did not say its id",
            advice=f"See: wrangler kv namespace list, and write the id into {worker.path}.",
        )
    text = worker.path.read_text(encoding="utf-8")
    write_atomically(worker.path, [text.replace(NO_NAMESPACE, found[1])])
    return replace(worker, namespace_id=found[1])


def _is_public(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" and parts.hostname not in (None, "localhost", "127.0.0.1", "::1")


@command(
    help={
        "folder": "the Worker's folder (default: cloud in the project)",
        "dry-run": "say what would be done; ask nobody, change nothing",
        "json": JSON_HELP,
    }
)
def deploy(
    c: Context, folder: str | None = None, dry_run: bool = False, json: bool = False
) -> Deployed:
    """Deploy the Worker, and make what it needs on Cloudflare.

    Example: invoke nimbus.cloud.deploy --dry-run
    """
    console = Console(json_only=json)
    root = project_root(c)
    project = load_project(root)
    worker = load_worker(worker_folder(root, folder))
    check_worker(worker, project)
    program = find_wrangler(worker.folder, root)
    if dry_run:
        steps = plan(worker, os.environ)
        namespace = worker.namespace_id if worker.has_namespace else None
        lines = [f"wrangler {' '.join(step.arguments)}" for step in steps]
        deployed = Deployed(worker.name, namespace, lines, dry_run=True)
    else:
        deployed = deploy_worker(worker, os.environ, program, console.note)
        note_worker(project, deployed)
    if json:
        console.document(deployed.to_json())
    else:
        console.say(*_lines(deployed, project, console))
    return deployed


def _lines(deployed: Deployed, project: Project, console: Console) -> list[str]:
    style = console.style
    if deployed.dry_run:
        head = "Would run, where what it makes is not there yet:"
        return [head, *(f"   {clean(step)}" for step in deployed.steps)]
    lines = [f"{style.sign('ok')} {deployed.name} is deployed: a tick a minute"]
    if project.cloudflare.get("namespace_id") != deployed.namespace_id:
        lines.append("   The pages have to be where it is. Point the project at its namespace:")
        lines.append(
            "   invoke nimbus.init --force --store=cloudflare"
            f" --namespace-id={deployed.namespace_id}"
        )
    return lines
