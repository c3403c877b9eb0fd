"""A processor that is any program: the page as JSON on its stdin, its answer as JSON on stdout.

The command runs in a shell, once a page, in a process group of its own: Ctrl-C in the terminal
reaches the worker and not the pages in flight, and a command that takes too long is killed with
all it has started. What it writes to stderr goes into the log, and names the error if it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.wire import dump_json
from nimbus_tasks.kv.store import MAX_VALUE_BYTES

#: As much of stderr as says what went wrong.
_STDERR_KEPT = 2000


class CommandProcessor:
    """Runs ``command`` in ``directory`` for each page; ``timeout`` in seconds kills it."""

    def __init__(self, command: str, directory: Path, timeout: float | None = None) -> None:
        self._command = command
        self._directory = directory
        self._timeout = timeout
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def __call__(self, page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        """Process one page. Raises :class:`ProcessorError` for whatever the command does wrong."""
        progress("command", 0)
        process = self._start(page)
        self._running.add(process)
        if self._ended:
            _kill(process)
        try:
            out, err = _communicate(process, dump_json(page).encode(), self._timeout)
        finally:
            self._running.discard(process)
        last_words = err.decode("utf-8", "replace").strip()[-_STDERR_KEPT:]
        if process.returncode:
            how = _how_it_ended(process.returncode, last_words)
            raise ProcessorError(how, code="command_failed")
        if last_words:
            progress("command", 100, last_words)
        return _answer(out)

    def kill_all(self) -> None:
        """End the commands that run now, and those that are just beginning."""
        self._ended = True
        for process in list(self._running):
            _kill(process)

    def _start(self, page: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "NIMBUS_PAGE_ID": str(page["page_id"])}
        group: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            return subprocess.Popen(
                self._command,
                shell=True,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **group,
            )
        except OSError as error:
            raise ProcessorError(f"cannot start it: {error}", code="command_failed") from error


def _communicate(
    process: subprocess.Popen[bytes], page: bytes, timeout: float | None
) -> tuple[bytes, bytes]:
    """Like ``Popen.communicate``, but a command that writes without end fills no memory."""
    out, err = _Reader(process.stdout, MAX_VALUE_BYTES), _Reader(process.stderr, None)
    writer = threading.Thread(target=_write, args=(process.stdin, page), daemon=True)
    for thread in (out, err, writer):
        thread.start()
    out.when_too_much(lambda: _kill(process))
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
        raise ProcessorError(f"took longer than {timeout:g} seconds", code="timeout") from None
    # Something it left in the background may hold the pipes open; it does not hold us up.
    for thread in (out, err):
        thread.join(timeout=1)
    if out.too_much:
        raise ProcessorError(f"answered more than {MAX_VALUE_BYTES // 2**20} MB", code="bad_result")
    return bytes(out.kept), bytes(err.kept)


class _Reader(threading.Thread):
    """Reads a pipe to its end; keeps all up to ``limit``, or only the last of it."""

    def __init__(self, pipe: IO[bytes] | None, limit: int | None) -> None:
        super().__init__(daemon=True)
        self.kept = bytearray()
        self.too_much = False
        self._pipe = pipe
        self._limit = limit
        self._on_too_much: Callable[[], None] = lambda: None

    def when_too_much(self, call: Callable[[], None]) -> None:
        self._on_too_much = call
        if self.too_much:
            call()

    def run(self) -> None:
        assert self._pipe is not None
        with self._pipe as pipe:
            while chunk := pipe.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader
                if self._limit is not None and len(self.kept) + len(chunk) > self._limit:
                    self.too_much = True
                    self._on_too_much()
                    return
                self.kept += chunk
                if self._limit is None:
                    del self.kept[:-_STDERR_KEPT]


def _write(pipe: IO[bytes] | None, page: bytes) -> None:
    assert pipe is not None
    # It may not read its input to the end, which is its own business.
    with contextlib.suppress(OSError), pipe:
        pipe.write(page)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the shell and whatever it has started."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(code: int, last_words: str) -> str:
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    line = last_words.splitlines()[-1] if last_words else ""
    return f"{how}: {line}" if line else how


def _answer(out: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(out)
    except (ValueError, RecursionError) as error:
        start = out[:60].decode("utf-8", "replace")
        raise ProcessorError(f"answered no JSON: {start!r}", code="bad_result") from error
    if not isinstance(answer, dict):
        raise ProcessorError("answered JSON that is no object", code="bad_result")
    return answer
