"""Cloudflare's own local server, started once a test process: ``wrangler dev``.

A module that uses it has ``pytest_plugins = ["tests.wrangler.server"]``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.wrangler.installed import HERE, MODULES, need_wrangler, node, quiet_environment

#: What is bound in wrangler.jsonc.
BOUND_NAMESPACE = "0123456789abcdef0123456789abcdef"
READY_SECONDS = 60.0
#: Port 0 is a free one, which the log names.
_OPTIONS = ("dev", "--ip=127.0.0.1", "--port=0", "--inspector-port=0", "--persist-to=state")
_READY = re.compile(r"Ready on (http://127\.0\.0\.1:[1-9]\d*)")


class Wrangler(NamedTuple):
    """The server: all of an address before ``/storage/kv``, and the folder with its log."""

    prefix: str
    folder: Path

    def new_namespace(self) -> str:
        """The id of a namespace with nothing in it. Any is one: it is made by the first write."""
        return secrets.token_hex(16)


@pytest.fixture(scope="session")
def wrangler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wrangler]:
    """Cloudflare's own server, on a port of its own, with a state that goes with the session."""
    need_wrangler()
    with running(tmp_path_factory.mktemp("wrangler")) as server:
        yield server


@contextmanager
def running(folder: Path) -> Iterator[Wrangler]:
    """The server with its state and its log in ``folder``, until the end of the block.

    Ended with it are the processes that it has started: they are a group of their own.
    """
    for name in ("wrangler.jsonc", "worker.js"):
        shutil.copy(HERE / name, folder)  # it writes beside them
    log = folder / "wrangler.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [node(), MODULES / "wrangler" / "bin" / "wrangler.js", *_OPTIONS],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Wrangler(_prefix_when_ready(process, log), folder)
    finally:
        _end(process)


def _environment(folder: Path) -> dict[str, str]:
    """Ours, without an account."""
    return {
        **{name: value for name, value in os.environ.items() if "CLOUDFLARE" not in name},
        "PATH": f"{node().parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **quiet_environment(folder),
    }


def _prefix_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address, as soon as a listing is answered there. Fails with what the server has said."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if ready := _READY.search(log.read_text(errors="replace")):
            prefix = f"{ready[1]}/cdn-cgi/local/explorer/api"
            url = f"{prefix}/storage/kv/namespaces/{BOUND_NAMESPACE}/keys"
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if json.load(answer)["success"]:
                    return prefix
        time.sleep(0.05)
    code = process.poll()
    how = f"was not ready after {READY_SECONDS:g} s" if code is None else f"ended with {code}"
    said = log.read_text(errors="replace")[-4000:]
    pytest.fail(f"wrangler {how}; its log, {log}:\n{said}", pytrace=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends its own processes when asked; what is left of the group is killed."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
