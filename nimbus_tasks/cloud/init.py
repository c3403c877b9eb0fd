"""``nimbus.cloud.init``: writes the Worker of the project, to be read, changed and deployed."""

from __future__ import annotations

import json as json_
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from invoke.context import Context

from nimbus_tasks.cloud.wrangler import CONFIG_NAME, NO_NAMESPACE, wrangler_version
from nimbus_tasks.command import JSON_HELP, check_text, command, project_root
from nimbus_tasks.core.advice import shell_quoted
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.project import (
    Project,
    config_path,
    create_project,
    load_project,
    new_project,
)
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.text import path_here

FOLDER = "cloud"
#: Each processor's variables in wrangler.jsonc, with what they are at first.
PROCESSORS = {
    "http": {"PROCESSOR_URL": "http://127.0.0.1:8080/"},
    "llm": {"LLM_URL": "https://api.openai.com/v1/chat/completions", "LLM_MODEL": "gpt-4o-mini"},
}
#: Worker and queue names: lower case, no underscores, at most 63 characters with ``-dead``.
_NAME_CHARACTERS = 58


@dataclass(frozen=True)
class Written:
    """The Worker's folder, and the files that were written there."""

    folder: Path
    files: list[str]
    processor: str
    namespace_id: str

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        made = None if self.namespace_id == NO_NAMESPACE else self.namespace_id
        return {
            "folder": str(self.folder),
            "files": self.files,
            "processor": self.processor,
            "namespace_id": made,
        }


def write_worker(
    project: Project,
    folder: Path,
    *,
    processor: str = "http",
    url: str | None = None,
    model: str | None = None,
) -> Written:
    """Write the Worker of ``project`` into ``folder``, which must not be there yet, or be empty.

    All of it is written or nothing. Raises :class:`UsageError`.
    """
    if processor not in PROCESSORS:
        raise UsageError(
            f"--processor {processor[:40]!r} is not known to this version",
            advice=f"It knows: {', '.join(PROCESSORS)}. Your own goes into processor.js.",
        )
    if model is not None and processor != "llm":
        raise UsageError(
            f"--model is of no use to the processor {processor}", advice="Add --processor=llm."
        )
    if url is not None and not _is_address(url):
        raise UsageError(
            f"--url is no address: {url[:60]!r}",
            advice="It begins with https://, or for nimbus.cloud.dev with http://127.0.0.1",
        )
    if project.queue != "keys":
        raise UsageError(
            f"the Worker reads a queue of keys, and this project's is a {project.queue}",
            advice="Change it with: invoke nimbus.init --force --queue=keys",
        )
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.is_symlink() or not is_free:  # no folder takes the place of a link
        raise UsageError(
            f"{folder} is there already; nothing was written",
            advice="Give another --folder, or delete it if it is of no more use.",
        )
    defaults = PROCESSORS[processor]
    given = {next(iter(defaults)): url, "LLM_MODEL": model}
    variables = {name: given.get(name) or value for name, value in defaults.items()}
    namespace = project.cloudflare.get("namespace_id") or NO_NAMESPACE
    with _beside(folder) as part:
        with resources.as_file(resources.files("nimbus_tasks.cloud") / "worker") as source:
            shutil.copytree(source, part, ignore=shutil.ignore_patterns("__pycache__"))
        (part / "gitignore").rename(part / ".gitignore")
        choice = part / "processor.js"
        text = choice.read_text(encoding="utf-8").replace("@PROCESSOR@", processor)
        choice.write_text(text, encoding="utf-8")
        config = part / CONFIG_NAME
        filled = _fill(config.read_text(encoding="utf-8"), project, str(namespace), variables)
        config.write_text(filled, encoding="utf-8")
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Written(folder, sorted(names), processor, str(namespace))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # half an IPv6 address
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)


def worker_name(project: Project) -> str:
    """What the Worker and its queue are called."""
    name = re.sub(r"[^a-z0-9]+", "-", project.project_id.lower()).strip("-")
    name = f"nimbus-{name}"[:_NAME_CHARACTERS].rstrip("-")
    # By this end the Worker knows the queue of dead letters: no other may have it.
    return re.sub("-dead$", "dead", name)


def _fill(text: str, project: Project, namespace: str, variables: dict[str, str]) -> str:
    lines = [f"    {json_.dumps(name)}: {json_.dumps(value)}" for name, value in variables.items()]
    filled = text.replace("@NAME@", worker_name(project)).replace("@PROJECT@", project.project_id)
    return filled.replace("@NAMESPACE@", namespace).replace("@VARS@", ",\n".join(lines))


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` when all is written."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if folder.exists():
            folder.rmdir()  # it is empty
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@command(
    help={
        "processor": f"what is done to a page: {' or '.join(PROCESSORS)} (default: http)",
        "url": "the address that the processor asks",
        "model": "the language model, for --processor=llm",
        "folder": f"where to write it (default: {FOLDER} in the project)",
        "json": JSON_HELP,
    }
)
def init(
    c: Context,
    processor: str | None = None,
    url: str | None = None,
    model: str | None = None,
    folder: str | None = None,
    json: bool = False,
) -> Written:
    """Write the Worker that processes pages on Cloudflare.

    Example: invoke nimbus.cloud.init --processor=llm
    """
    console = Console(json_only=json)
    processor = check_text(processor, "--processor") or "http"
    url, model = check_text(url, "--url", stored=True), check_text(model, "--model", stored=True)
    root = project_root(c)
    target = worker_folder(root, folder)
    exists = config_path(root).exists()
    project = load_project(root) if exists else new_project(root)
    written = write_worker(project, target, processor=processor, url=url, model=model)
    if not exists:
        create_project(project)
    try:
        wrangler_version(target, root)
    except UsageError as error:  # what has been written is right all the same
        console.warning(f"what runs it is missing: {error.message}", error.advice)
    if json:
        console.document(written.to_json())
    else:
        style = console.style
        where = "" if folder is None else f" --folder={shell_quoted(path_here(target))}"
        console.say(
            f"{style.sign('ok')} {path_here(target)}/: the Worker of {project.project_id}",
            f"   processor.js is what it does to a page: {processor}",
            style.dim(f"   on this machine: invoke nimbus.cloud.dev{where}"),
            style.dim(f"   on Cloudflare:   invoke nimbus.cloud.deploy --dry-run{where}"),
        )
    return written


def worker_folder(root: Path, given: str | None) -> Path:
    """The Worker's folder: as a person typed it, or ``cloud`` in the project."""
    typed = check_text(given, "--folder")
    return root / FOLDER if typed is None else Path(typed).absolute()
