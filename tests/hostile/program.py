"""Invoke's own program in this process, with streams that keep all bytes, and what must hold."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from invoke.program import Program

from tests.factories import TASKS, environment_for, invoke_command

#: Much longer than any of these commands takes.
HANG_SECONDS = 60
#: Of a message; a person reads one line.
LONGEST_LINE = 2000
CODES = frozenset({0, 2, 3, 4, 5, 6, 7})
EXIT_USAGE = 1
#: What our own styles, live block and progress bar write to a terminal; none of it is drawn.
_OURS = re.compile(r"\x1b\[(0|1|31|32|33|34|90)m|\x1b\[\?25[lh]|\x1b\[\d*[AKJ]")


class HangsError(BaseException):
    """No exception that a command may take for one of its own."""


class Stream(io.TextIOWrapper):
    """A standard stream that may be a terminal; all that is written to it is kept."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def kept(self) -> bytes:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


@dataclass(frozen=True)
class Ran:
    """How a command ended and all that it wrote."""

    arguments: tuple[str, ...]
    code: int
    out: bytes
    err: bytes
    on_terminal: bool


def run(root: Path, *arguments: str, on_terminal: bool = False) -> Ran:
    """Run a command in the project ``root`` as a person does, and check what always must hold."""
    if not (root / "tasks.py").exists():
        (root / "tasks.py").write_text(TASKS)
    out, err = Stream(is_terminal=on_terminal), Stream(is_terminal=on_terminal)
    program = Program(name="Invoke", binary="inv[oke]", binary_names=["invoke", "inv"])
    code, before, path = 0, Path.cwd(), list(sys.path)
    os.chdir(root)
    try:
        with (
            mock.patch.multiple(sys, stdout=out, stderr=err, dont_write_bytecode=True),
            watched(arguments),
        ):
            program.run(["invoke", *arguments])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        os.chdir(before)
        sys.path[:] = path
    ran = Ran(arguments, code, out.kept, err.kept, on_terminal)
    check(ran)
    return ran


def in_pipes(root: Path, *arguments: str) -> Ran:
    """Run a command in a process of its own."""
    (root / "tasks.py").write_text(TASKS)
    ran = subprocess.run(
        invoke_command(root, *arguments),
        cwd=root,
        env=environment_for(),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=HANG_SECONDS,
    )
    return Ran(arguments, ran.returncode, ran.stdout, ran.stderr, on_terminal=False)


def in_a_terminal(root: Path, *arguments: str) -> Ran:
    """Run a command in a process of its own, with a pseudo-terminal for its output; all of it is in
    ``err``."""
    (root / "tasks.py").write_text(TASKS)
    ours, its = os.openpty()
    process = subprocess.Popen(
        invoke_command(root, *arguments),
        cwd=root,
        env=environment_for(TERM="xterm-256color"),
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    with suppress(OSError), watched(arguments):  # EIO: nobody has the other end any more
        while more := os.read(ours, 65536):
            shown += more
    os.close(ours)
    code = process.wait(HANG_SECONDS)
    # The terminal itself ends each line in CR and LF.
    return Ran(arguments, code, b"", shown.replace(b"\r\n", b"\n"), on_terminal=True)


@contextmanager
def watched(arguments: tuple[str, ...]) -> Iterator[None]:
    """End what hangs."""

    def hangs(*_: object) -> None:
        raise HangsError(f"hangs: {arguments}")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(ran: Ran, *, usage_errors: bool = False) -> None:
    """What must hold of every command, whatever it met."""
    out, err = ran.out.decode(), ran.err.decode()
    told = (ran.arguments, ran.code, out[-2000:], err[-2000:])
    assert "Traceback" not in out + err, told
    assert ran.code in CODES or (usage_errors and ran.code == EXIT_USAGE), told
    for shown in (out, err):
        assert not controls_in(shown, on_terminal=ran.on_terminal), (
            controls_in(shown, on_terminal=ran.on_terminal),
            told,
        )
        assert max(map(len, shown.splitlines()), default=0) < LONGEST_LINE or "--json" in (
            ran.arguments
        ), told
    if "--json" in ran.arguments:
        check_json(ran.out, is_error=ran.code in (2, 4, 5, 6))
    if ran.code in (2, 4, 5, 6) and "nimbus.doctor" not in ran.arguments:
        lines = [line for line in plain(err).splitlines() if line.strip()]
        if ran.on_terminal:  # where a long message goes on in lines that are indented
            lines = [line for line in lines if not line.startswith("   ")]
        assert lines, told
        assert lines[-1].lstrip("\r ").startswith(("❌", "!!")), told


def check_json(out: bytes, *, is_error: bool) -> None:
    """JSON, or a line of it each, in printable ASCII; on an error there need be none."""
    assert not set(out) - set(range(0x20, 0x7F)) - {0x0A}, out[-500:]
    if is_error and not out:
        return
    try:
        json.loads(out, parse_constant=_no_constant)
    except json.JSONDecodeError:
        lines = out.splitlines()
        assert lines, "no JSON"
        for line in lines:
            json.loads(line, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def plain(shown: str) -> str:
    """Without what we write ourselves."""
    return _OURS.sub("", shown)


def controls_in(shown: str, *, on_terminal: bool) -> list[str]:
    """What a terminal would obey, and is not ours."""
    assert "\rOVER" not in shown
    own = "\n\r" if on_terminal else "\n"
    rest = plain(shown) if on_terminal else shown
    return [
        repr(char)
        for char in set(rest)
        if char not in own and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    import resource

    with suppress(AttributeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return 0.0
