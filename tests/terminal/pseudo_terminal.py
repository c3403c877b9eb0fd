"""A command in a pseudo-terminal, and the screen that its user would see."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

from tests.factories import environment_for

#: Against a hang only: what is waited for comes within a second or two.
PATIENCE_SECONDS = 40.0
#: What differs from run to run.
_VARYING = (
    (re.compile(r"batch_\d{8}_\d{6}"), "batch_YYYYMMDD_HHMMSS"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \([^)]*\)"), "TIME"),
    (re.compile(r"[\d.,]+ pages/(s|min)"), "N pages/s"),
    (re.compile(r"(\d+–)?\d+ (s|min|h) left|a moment left"), "N s left"),
    (re.compile(r" +\d+(\.\d)? m?s\b"), " N s"),
)


class PseudoTerminal:
    """Runs a command; :attr:`lines` is its screen, :attr:`scrollback` what has left it."""

    def __init__(
        self, argv: Sequence[str], cwd: Path, columns: int, rows: int, **environment: str
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self.raw = b""
        self._stream = pyte.Stream(self.screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment_for(**{"TERM": "xterm-256color", "CI": "", **environment}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=self._become_foreground,
        )
        os.close(slave)

    @staticmethod
    def _become_foreground() -> None:
        """So that Ctrl-C and a resize reach it as they reach a command that a shell has started."""
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    @property
    def lines(self) -> list[str]:
        """The screen, without trailing blanks and empty lines at the end."""
        rows = [line.rstrip() for line in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def scrollback(self) -> list[str]:
        """The lines that have left the screen at its top."""
        width = self.screen.columns
        return [
            "".join(line[x].data for x in range(width)).rstrip() for line in self.screen.history.top
        ]

    @property
    def text(self) -> str:
        """Scrollback and screen."""
        return "\n".join([*self.scrollback, *self.lines])

    @property
    def frame(self) -> str:
        """The screen, with what differs from run to run made alike."""
        return alike("\n".join(self.lines))

    def press(self, keys: str) -> None:
        """Type something; ``\\x03`` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as dragging a window's corner does."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def until(self, holds: Callable[[], bool]) -> None:
        """Read until it holds, or fail with the screen."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, self.text
            assert self._read() or holds(), f"it has ended:\n{self.text}"

    def shows(self, *words: str) -> None:
        """Read until the screen has all of these words."""
        self.until(lambda: all(word in "\n".join(self.lines) for word in words))

    def wait(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read():
            assert time.monotonic() < deadline, self.text
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self) -> bool:
        """Obey what has come within a moment; ``False`` after the last of it."""
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says so where nobody has the other side any more
            return False
        self.raw += data
        # Pyte drops what follows a variation selector; a terminal of today makes the sign before it
        # two columns wide, which a space behind it does as well.
        self._stream.feed(self._decoder.decode(data).replace("\ufe0f", " "))
        return bool(data)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        os.close(self._master)


def alike(text: str, also: Mapping[str, str] | None = None) -> str:
    """``text`` without what differs from run to run."""
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    for old, new in (also or {}).items():
        text = text.replace(old, new)
    return text
