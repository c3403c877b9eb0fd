"""``nimbus.cloud.dev``: the Worker on this machine, on Cloudflare's own runtime, with its own KV.

wrangler serves the REST API of its local KV, so the tasks can be pointed at it: by a configuration
of its own beside the Worker, which ``NIMBUS_CONFIG`` names. The project's own is left as it is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from invoke.context import Context

from nimbus_tasks.cloud.init import worker_folder
from nimbus_tasks.cloud.wrangler import (
    NEWER_ADVICE,
    WorkerConfig,
    find_wrangler,
    last_words,
    load_worker,
    old_node,
)
from nimbus_tasks.command import (
    check_int,
    check_seconds,
    command,
    project_root,
)
from nimbus_tasks.core.advice import shell_quoted
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import InterruptedByUserError, UsageError
from nimbus_tasks.core.processes import in_own_group, kill_group
from nimbus_tasks.core.project import (
    Project,
    load_project,
    new_project,
    write_atomically,
)
from nimbus_tasks.kv.cloudflare import TOKEN_VARIABLE
from nimbus_tasks.kv.cloudflare.secret import without_secret
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.text import path_here

CONFIG_NAME = "dev.json"
DEFAULT_PORT = 8787
DEFAULT_TICK_SECONDS = 5.0
READY_SECONDS = 60.0
_API = "/cdn-cgi/local/explorer/api"
_READY = re.compile(r"Ready on (http://127\.0\.0\.1:[1-9]\d*)")


@dataclass(frozen=True)
class LocalWorker:
    """A Worker that runs here: its address, the configuration that points tasks at it, its log."""

    address: str
    config: Path
    log: Path
    process: subprocess.Popen[bytes]

    def tick(self) -> None:
        """Do what the cron trigger does. Raises :class:`UsageError` if wrangler has ended."""
        # A tick that fails is in the log, and another follows.
        with suppress(OSError):
            _ask(f"{self.address}/cdn-cgi/local/scheduled?cron=*+*+*+*+*", 600)
        if self.process.poll() is not None:
            raise _ended(self.log)


@contextmanager
def running(
    root: Path, worker: WorkerConfig, program: str, port: int = DEFAULT_PORT
) -> Iterator[LocalWorker]:
    """The Worker on this machine, run by wrangler (``program``), until the end of the block.

    Raises :class:`UsageError` where it does not run.
    """
    state = worker.folder / ".wrangler"
    state.mkdir(exist_ok=True)
    with _alone(state / "dev.lock", worker.folder):
        _check_port(port)
        with _started(root, worker, program, port, state / "dev.log") as local:
            yield local


@contextmanager
def _alone(path: Path, folder: Path) -> Iterator[None]:
    """Raises :class:`UsageError` while another has the Worker in hand: two on one KV, each with a
    Queue of its own, do pages twice."""
    lock = FileLock(path)
    try:
        if not lock.acquire(0):
            raise UsageError(
                f"the Worker in {path_here(folder)} runs already",
                advice="End that one with Ctrl-C, in its terminal.",
            )
        yield
    finally:
        lock.close()


@contextmanager
def _started(
    root: Path, worker: WorkerConfig, program: str, port: int, log: Path
) -> Iterator[LocalWorker]:
    arguments = (
        "dev",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--inspector-port=0",
        "--persist-to=.wrangler/state",
        # What is read here is never old, and a key can be written at any time.
        "--var=LAG_SECONDS:0",
        "--var=WRITE_SECONDS:0.05",
    )
    log.touch(mode=0o600)  # it may say what the Worker prints
    log.chmod(0o600)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *arguments],
            cwd=worker.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", "CI": "1"},  # it asks nothing
            # Ctrl-C is for us alone: we end it, when the tick in hand has ended.
            **in_own_group(),
        )
    try:
        address = _address_when_ready(process, log)
        _check_api(address, log)
        project = _local_project(root, worker, address)
        config = worker.folder / CONFIG_NAME
        text = json.dumps(project.to_config(), indent=2, ensure_ascii=False) + "\n"
        write_atomically(config, [text])
        _put_back(project)
        yield LocalWorker(address, config, log, process)
    finally:
        _end(process)


def _check_port(port: int) -> None:
    """Raises :class:`UsageError` where somebody has the port: wrangler says that in one line of
    many, and not in the last."""
    with socket.socket() as listener:
        if sys.platform != "win32":  # where it would take the port from whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be had: {error.strerror}", advice="Give another with --port."
            ) from error


def _local_project(root: Path, worker: WorkerConfig, address: str) -> Project:
    """The project with its store in the local KV."""
    try:
        project: Project = load_project(root)
    except UsageError:
        project = new_project(root)
    api_base = f"{address}{_API}"
    return replace(
        project,
        project_id=worker.project_id,
        store="cloudflare",
        queue="keys",
        cloudflare={
            "namespace_id": worker.namespace_id,
            "worker_namespace_id": worker.namespace_id,
            "api_base": api_base,
        },
    )


def _put_back(project: Project) -> None:
    """Queue the pages again that an earlier run had in hand, and forget what it had sent: its Queue
    was in its memory, and a lease is long for somebody who sits there and waits."""
    from nimbus_tasks.core.keys import tick_key
    from nimbus_tasks.core.lapses import put_back_claimed
    from nimbus_tasks.core.pages import list_pages, read_statuses

    project_id = project.project_id
    with project.open_store() as store, store.transaction() as tx:
        held = [p.page_id for p in list_pages(tx, project_id) if p.status["status"] == "processing"]
        put_back_claimed(tx, project_id, read_statuses(tx, project_id, held), utc_now())
        tx.delete_many([tick_key(project_id)])


def _address_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if ready := _READY.search(log.read_text(encoding="utf-8", errors="replace")):
            return ready[1]
        time.sleep(0.05)
    raise _ended(log)


def _check_api(address: str, log: Path) -> None:
    """Raises :class:`UsageError` where wrangler is one that has its local KV elsewhere."""
    try:
        _ask(f"{address}{_API}/storage/kv/namespaces", 30)
    except OSError as error:
        banner = re.search(
            r"wrangler \d+\.\d+\.\d+", log.read_text(encoding="utf-8", errors="replace")
        )
        raise UsageError(
            f"{banner[0] if banner else 'wrangler'} does not serve its local KV at {_API}",
            advice=NEWER_ADVICE,
        ) from error


def _ask(url: str, seconds: float) -> None:
    """Raises :class:`OSError` where the answer is none or an error."""
    import urllib.request

    # No proxy: it is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=seconds) as answer:
        answer.read()


def _ended(log: Path) -> UsageError:
    log_text = log.read_text(encoding="utf-8", errors="replace")
    if (error := old_node(log_text)) is not None:
        return error
    said = without_secret(last_words(log_text), os.environ.get(TOKEN_VARIABLE))
    return UsageError(f"wrangler does not run: {said}", advice=f"All that it said: {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends its own processes when asked; what is left of its group is killed."""
    if sys.platform != "win32":  # where it would be killed, and its own processes live on
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    kill_group(process)
    process.wait()


@command(
    help={
        "port": f"the port on this machine (default: {DEFAULT_PORT})",
        "every": f"seconds between two ticks (default: {DEFAULT_TICK_SECONDS:g}; on Cloudflare 60)",
        "folder": "the Worker's folder (default: cloud in the project)",
    }
)
def dev(
    c: Context, port: str | None = None, every: str | None = None, folder: str | None = None
) -> None:
    """Run the Worker on this machine, until Ctrl-C.

    Example: invoke nimbus.cloud.dev
    """
    console = Console()
    number = check_int(port, "--port", at_most=65535) or DEFAULT_PORT
    seconds = check_seconds(every, "--every") or DEFAULT_TICK_SECONDS
    root = project_root(c)
    worker = load_worker(worker_folder(root, folder))
    program = find_wrangler(worker.folder, root)
    # A terminal that is closed, a job that is ended: wrangler is not to outlive us.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    console.note("Starting wrangler …")
    try:
        with running(root, worker, program, number) as local:
            _say_how(console, local, seconds)
            while True:
                local.tick()
                time.sleep(seconds)
    except KeyboardInterrupt:
        console.note("")  # behind the terminal's ^C
        raise InterruptedByUserError(
            "stopped: the Worker runs no more; what is in its KV stays"
        ) from None


def _say_how(console: Console, local: LocalWorker, seconds: float) -> None:
    style, config = console.style, path_here(local.config)
    setting = f"export NIMBUS_CONFIG={shell_quoted(config)}"
    if os.name == "nt":  # where quotes would be a part of the value
        setting = f"set NIMBUS_CONFIG={config}"
    console.say(
        f"{style.sign('ok')} {local.address}: the Worker runs, a tick every {seconds:g} s",
        "   in another terminal:",
        f"   {setting}",
        "   invoke nimbus.upload nimbus.batch.monitor nimbus.batch.report",
        style.dim(f"   Ctrl-C ends it; its log: {path_here(local.log)}"),
    )
