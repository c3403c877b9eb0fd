"""Making maps, batches and commands in a line, with only what a test is about spelled out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from nimbus_tasks.core import batches
from nimbus_tasks.core.claims import Outcome
from nimbus_tasks.core.project import Project, save_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.processors import Processor
from nimbus_tasks.upload import sending
from nimbus_tasks.upload.folder import check_folder
from nimbus_tasks.upload.sending import Uploaded, upload_maps
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import Options, Worked

REPOSITORY = Path(__file__).parents[1]
TASKS = (
    "from invoke import Collection\nfrom nimbus_tasks import nimbus\n\nns = Collection(nimbus)\n"
)


def a_map(path: str = "dist/page.html", **fields: Any) -> dict[str, Any]:
    """A small usable content map."""
    blocks = [{"i": 0, "type": "h1", "selector": "main > h1", "text": "A heading"}]
    return {"path": path, "head": {"title": "A title"}, "blocks": blocks, **fields}


def write_map(folder: Path, name: str, content: object) -> Path:
    """Write ``content`` as JSON (a text or bytes as they are) to ``folder/name``."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_maps(folder: Path, count: int) -> None:
    """``count`` usable maps, ``page-000.json`` and on, of ``dist/page-000.html`` and on."""
    for number in range(count):
        write_map(folder, f"page-{number:03d}.json", a_map(f"dist/page-{number:03d}.html"))


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(child.name for child in folder.iterdir())


def upload(project: Project, store: Store, folder: Path, **options: Any) -> Uploaded:
    """Check a folder and send it."""
    checked = check_folder(folder, project.project_id)
    return upload_maps(project, store, checked, folder, **options)


def upload_cut_off(
    project: Project, store: Store, folder: Path, *, before: str = "_put_pages", after: int = 0
) -> str:
    """Send a folder in chunks of four pages until it is killed: when ``before``, a step of
    :mod:`~nimbus_tasks.upload.sending`, comes after it was done ``after`` times. The batch."""
    steps = [*[mock.DEFAULT] * after, KilledError()]
    step = mock.patch.object(sending, before, wraps=getattr(sending, before), side_effect=steps)
    with mock.patch.object(sending, "CHUNK_PAGES", 4), step, suppress(KilledError):
        upload(project, store, folder)
        raise AssertionError(f"it has come to its end without {before}")
    return batches.heads(store, project.project_id)[0].batch_id


class KilledError(BaseException):
    """Nothing that the killed one could handle."""


def project_on_kv(root: Path, namespace: str, api_base: str, *, maps: int = 0) -> Project:
    """A project on that namespace of Workers KV, with so many maps to upload."""
    where = {"namespace_id": namespace, "api_base": api_base}
    made = Project(root, "proj_0123456789ab", "test", "", store="cloudflare", cloudflare=where)
    save_project(made)
    write_maps(made.folder / "maps", maps)
    return made


class Quiet:
    """A worker's watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.reasons: list[str] = []

    def pages_ended(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def still_to_do(self, count: int) -> None:
        pass

    def waits(self, reason: str) -> None:
        self.reasons.append(reason)

    def stops(self, in_flight: int) -> None:
        self.reasons.append(f"stops with {in_flight}")


def no_changes(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """The shortest processor."""
    return {"changes": 0}


def work(
    project: Project, store: Store, processor: Processor = no_changes, **options: Any
) -> Worked:
    """Run a worker until the queue is empty."""
    return Worker(store, project.project_id, processor, Options(**options), Quiet()).run()


def failing(*paths: str, times: int = 1, code: str = "broken") -> Processor:
    """A processor that fails pages of those paths, each so many times."""
    from nimbus_tasks.core.errors import ProcessorError

    left = dict.fromkeys(paths, times)

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        progress("look", 50)
        if left.get(page["source_path"], 0) > 0:
            left[page["source_path"]] -= 1
            raise ProcessorError(f"cannot do {page['source_path']}", code=code)
        return {"changes": 2, "confidence": 0.5, "optimization": {"title": "better"}}

    return process


def invoke(
    root: Path, *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``invoke`` with the tasks of ``root`` in a process of its own."""
    return subprocess.run(
        invoke_command(root, *arguments),
        cwd=root,
        env=environment_for(**environment),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def start(root: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The same in the background, with what it prints in pipes; whoever starts it ends it."""
    return subprocess.Popen(
        invoke_command(root, *arguments),
        cwd=root,
        env=environment_for(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def python(code: str) -> str:
    """What Python prints that runs ``code`` in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment_for(),
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return ran.stdout


def invoke_command(root: Path, *arguments: str) -> list[str]:
    """The command line of :func:`invoke`; writes ``tasks.py`` where there is none."""
    write_tasks(root)
    return [sys.executable, "-m", "invoke", *arguments]


def write_tasks(root: Path) -> None:
    """Write ``tasks.py`` where there is none."""
    tasks = root / "tasks.py"
    if not tasks.exists():
        tasks.write_text(TASKS)


def environment_for(**changes: str) -> dict[str, str]:
    """The environment of a command: ours, with the repository to import from."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", **changes}
