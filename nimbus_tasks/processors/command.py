"""A processor that is any program: the page as JSON on its stdin, its answer as JSON on stdout.

The command runs in a shell, once a page, in a process group of its own: Ctrl-C in the terminal
reaches the worker and not the pages in flight, and a command that takes too long is killed with
all it has started. What it writes to stderr goes into the log, and names the error if it fails.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from nimbus_tasks.core.errors import ProcessorError, ProcessorUnusableError
from nimbus_tasks.core.processes import in_own_group, kill_group
from nimbus_tasks.core.wire import NoJsonError, dump_json, strict_loads
from nimbus_tasks.kv.store import MAX_VALUE_BYTES

#: As much of stderr as says what went wrong.
_STDERR_KEPT = 2000
#: What a command leaves in the background may write to the same pipes without end.
_LAST_WORDS_SECONDS = 1.0
#: What shells end with where there is no such program, or none that may be run; and how their last
#: line begins, or that of a script's ``#!/usr/bin/env``. What the program itself does not find may
#: be of the one page.
_NO_PROGRAM, _FINDERS = (126, 127), ("/bin/sh: ", "/usr/bin/env: ", "env: ")
if sys.platform == "win32":
    _NO_PROGRAM, _FINDERS = (9009,), ("",)


class CommandProcessor:
    """Runs ``command`` in ``directory`` for each page; ``timeout`` in seconds kills it.

    It has our environment but for the variables ``withheld``.
    """

    def __init__(
        self,
        command: str,
        directory: Path,
        timeout: float | None = None,
        *,
        withheld: Collection[str] = (),
    ) -> None:
        self._command = command
        self._directory = directory
        self._timeout = timeout
        self._withheld = frozenset(withheld)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False
        self._has_run = False

    def __call__(self, page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        """Process one page. Raises :class:`ProcessorError` for whatever the command does wrong, and
        :class:`ProcessorUnusableError` where it has never been found."""
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
            line = last_words.splitlines()[-1] if last_words else ""
            how = _how_it_ended(process.returncode, line)
            is_not_found = process.returncode in _NO_PROGRAM and line.startswith(_FINDERS)
            if is_not_found and not self._has_run:
                raise ProcessorUnusableError(
                    f"the command cannot be run ({how})", advice="Check --command."
                )
            self._has_run = True
            raise ProcessorError(how, code="command_failed")
        self._has_run = True
        if last_words:
            progress("command", 100, last_words)
        return _answer(out)

    def kill_all(self) -> None:
        """End the commands that run now, and those that are just beginning."""
        self._ended = True
        for process in list(self._running):
            _kill(process)

    def _start(self, page: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in self._withheld}
        environment["NIMBUS_PAGE_ID"] = str(page["page_id"])
        try:
            return subprocess.Popen(
                self._command,
                shell=True,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **in_own_group(),
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
        raise ProcessorError(f"took longer than {timeout:g} s", code="timeout") from None
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    for thread in (out, err):
        thread.take_the_rest(deadline)
    if out.too_much:
        raise ProcessorError(f"answered more than {MAX_VALUE_BYTES // 2**20} MB", code="bad_result")
    return bytes(out.kept), bytes(err.kept)


class _Reader(threading.Thread):
    """Reads a pipe to its end; keeps all up to ``limit``, or only the last of it.

    A process that the command leaves in the background may hold the pipe open. It is not waited
    for: all that the command itself wrote is in the pipe when it has ended, and is kept when the
    pipe is empty.
    """

    def __init__(self, pipe: IO[bytes] | None, limit: int | None) -> None:
        super().__init__(daemon=True)
        self.kept = bytearray()
        self.too_much = False
        self._pipe = pipe
        self._limit = limit
        self._reading = threading.Lock()
        self._on_too_much: Callable[[], None] = lambda: None

    def when_too_much(self, call: Callable[[], None]) -> None:
        """Call this when there is more than ``limit``; at once if there has been already."""
        self._on_too_much = call
        if self.too_much:
            call()

    def run(self) -> None:
        assert self._pipe is not None
        with self._pipe as pipe:
            more = True
            while more:
                _is_readable(pipe, None)
                with self._reading:
                    more = self._keep(os.read(pipe.fileno(), 65536))

    def take_the_rest(self, deadline: float) -> None:
        """Return when all that the command wrote is kept; at the latest at ``deadline``."""
        assert self._pipe is not None
        while self.is_alive() and (left := deadline - time.monotonic()) > 0:
            if not self._reading.acquire(timeout=left):
                return  # on Windows, where what is in the pipe is known by reading alone
            try:
                if not self._pipe.closed and not _is_readable(self._pipe, 0):
                    return
            finally:
                self._reading.release()
            self.join(0.01)

    def _keep(self, chunk: bytes) -> bool:
        if self._limit is not None and len(self.kept) + len(chunk) > self._limit:
            self.too_much = True
            self._on_too_much()
            return False
        self.kept += chunk
        if self._limit is None:
            del self.kept[:-_STDERR_KEPT]
        return bool(chunk)


def _is_readable(pipe: IO[bytes], seconds: float | None) -> bool:
    """Whether something, or the end, is there to be read; ``None`` waits for it."""
    if sys.platform == "win32":  # which cannot tell
        return True
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _write(pipe: IO[bytes] | None, page: bytes) -> None:
    assert pipe is not None
    # It may not read its input to the end, which is its own business.
    with contextlib.suppress(OSError), pipe:
        pipe.write(page)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the shell and whatever it has started."""
    if process.poll() is None:
        kill_group(process)


def _how_it_ended(code: int, line: str) -> str:
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    return f"{how}: {line}" if line else how


def _answer(out: bytes) -> dict[str, Any]:
    try:
        answer = strict_loads(out.decode("utf-8-sig").strip())
    except (NoJsonError, UnicodeDecodeError) as error:
        start = out[:60].decode("utf-8", "replace")
        why = str(error) if isinstance(error, NoJsonError) else "is not UTF-8"
        raise ProcessorError(f"its answer {why}: {start!r}", code="bad_result") from error
    if not isinstance(answer, dict):
        raise ProcessorError("answered JSON that is no object", code="bad_result")
    return answer
