"""Where a command writes: results to stdout, messages to stderr, and JSON alone if asked for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from nimbus_tasks.ui.style import Style, style_for
from nimbus_tasks.ui.text import clean, clip, command_lines, width, wrap

#: No line is longer than this where there is no terminal to ask.
DEFAULT_COLUMNS = 100
#: Columns of a message that quotes what somebody has given, which may be megabytes.
MAX_MESSAGE = 800
#: A terminal obeys U+009B as it does ESC [; a stream that is not UTF-8 has no place for the rest.
_NOT_ASCII_TEXT = re.compile(r"[^\n -~]+")


class Console:
    """The two streams of a command. With ``json_only``, whatever is said goes to stderr."""

    def __init__(self, *, json_only: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            _make_safe(stream)
        self.json_only = json_only
        self._out: TextIO = sys.stderr if json_only else sys.stdout
        self.style: Style = style_for(self._out)
        self.error_style: Style = style_for(sys.stderr)

    @property
    def columns(self) -> int:
        """How wide a line may be."""
        return terminal_size(self._out)[0]

    @property
    def is_terminal(self) -> bool:
        """Whether what is said appears on a terminal."""
        return self._out.isatty()

    def say(self, *lines: str) -> None:
        """Write lines for a person; whoever calls has cleaned what comes from outside with
        :func:`~nimbus_tasks.ui.text.clean`."""
        _write(self._out, (self.style.plain(line) + "\n" for line in lines))

    def hint(self, command: str) -> None:
        """Name the command to type next: to a person at a terminal, not to a build's log."""
        if self.is_terminal:
            lines = command_lines(f"next: {command}", self.columns - 3)
            self.say(*(self.style.dim(f"   {line}") for line in lines))

    def note(self, line: str) -> None:
        """Write a message that is not the result, to stderr."""
        _write(sys.stderr, [self.error_style.plain(line) + "\n"])

    def error(self, message: str, advice: str | None = None, command: str | None = None) -> None:
        """Say on stderr what is wrong and what to do: in one line, but for a narrow terminal."""
        self._complain("error", message, advice, command)

    def stopped(self, message: str, advice: str | None = None, command: str | None = None) -> None:
        """Say on stderr, likewise, what Ctrl-C has ended and how to go on."""
        self._complain("stopped", message, advice, command)

    def warning(self, message: str, advice: str | None = None) -> None:
        """Say on stderr, likewise, what is odd and ends nothing, and what to do."""
        self._complain("warning", message, advice)

    def _complain(
        self, level: str, message: str, advice: str | None, command: str | None = None
    ) -> None:
        style = self.error_style
        room = terminal_size(sys.stderr)[0] if sys.stderr.isatty() else None
        message, advice = clip(clean(message), MAX_MESSAGE), clip(clean(advice or ""), MAX_MESSAGE)
        whole = f"{message} · {advice}" if advice else message
        lines = [f"{style.state(level, message)}{whole[len(message) :]}"]
        if room is not None and width(whole) > room - 3:
            # The advice is broken by the terminal: a command in it can be copied whole.
            lines = [style.state(level, part) for part in wrap(message, room, indent=3)]
            lines += [advice] if advice else []
        if command:  # to be pasted: neither cut, nor broken by the terminal within a word
            if room is None or (len(lines) == 1 and width(f"{whole} {command}") <= room - 3):
                lines[0] += f" {command}"
            else:
                lines += command_lines(command, room - 3)
        self._below_one_another(style.sign(level), lines)

    def _below_one_another(self, sign: str, lines: list[str]) -> None:
        self.note(f"{sign} {lines[0]}")
        for line in lines[1:]:
            self.note(f"   {line}")

    def refusal(self, message: str) -> None:
        """Say on stderr what is wrong with one of many; broken between words on a terminal."""
        style = self.error_style
        lines = [clean(message)]
        if sys.stderr.isatty():
            lines = wrap(clean(message), terminal_size(sys.stderr)[0], indent=3)
        self._below_one_another(style.sign("error"), [style.state("error", line) for line in lines])

    def document(self, document: Any) -> None:
        """Write one JSON document to stdout."""
        self.json_text([json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), "\n"])

    def documents(self, documents: Iterable[Any]) -> None:
        """Write JSON documents to stdout, one a line."""
        for document in documents:
            self.json_text([json.dumps(document, ensure_ascii=False, allow_nan=False), "\n"])

    def json_text(self, parts: Iterable[str]) -> None:
        """Write to stdout what is JSON already, in ASCII: the rest as escapes."""
        _write(sys.stdout, map(_ascii_json, parts))


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever is written to stdout meanwhile goes to stderr: by ``print``, by a library below
    Python, by a program that is started."""
    streams = {id(stream): stream for stream in (sys.stdout, sys.__stdout__) if stream is not None}
    with contextlib.redirect_stdout(sys.stderr):
        _flush(streams.values())
        try:
            kept = os.dup(1)
        except OSError:  # it is closed: nothing can be written to it
            yield
            return
        try:
            with contextlib.suppress(OSError):  # stderr is closed
                os.dup2(2, 1)
            yield
        finally:
            with contextlib.suppress(OSError):  # stderr takes nothing: what was printed is lost
                _flush(streams.values())
            os.dup2(kept, 1)
            os.close(kept)


def open_missing_streams() -> None:
    """Point standard streams that are closed (``>&-``) at nowhere.

    Python has ``None`` for them, and the next file that is opened, a store's say, would be taken
    for one by whatever writes to descriptor 1.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - until the end


def drop_stdout() -> None:
    """If stdout takes nothing any more, let what is left for it go nowhere: Python flushes it at
    its end, and would complain once more."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # a stream of our caller's that has no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal; off one, columns of a file that people read."""
    fallback = (DEFAULT_COLUMNS, 24)
    if not stream.isatty():
        return fallback
    size = shutil.get_terminal_size(fallback)
    # Python 3.10 gives the 0 of a terminal that does not know its size as it is.
    return max(20, size.columns or fallback[0]), max(4, size.lines or fallback[1])


def can_redraw(stream: TextIO) -> bool:
    """Whether what is written to ``stream`` may be drawn over: a terminal that moves its cursor,
    and no build's log, which keeps every frame."""
    is_log = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not is_log


def _write(stream: TextIO, parts: Iterable[str]) -> None:
    try:
        stream.writelines(parts)
        stream.flush()
    except OSError as error:
        if error.filename is None:
            error.filename = "stdout" if stream is sys.stdout else "stderr"
        raise


def _flush(streams: Iterable[TextIO]) -> None:
    """Write out what waits in buffers, those of libraries in C as well."""
    for stream in streams:
        stream.flush()
    if sys.platform != "win32":
        import ctypes

        ctypes.CDLL(None).fflush(None)


def _ascii_json(text: str) -> str:
    # Half a surrogate pair is no text to many a parser, not even as an escape: it becomes "?".
    whole = text.encode("utf-8", "replace").decode()
    return _NOT_ASCII_TEXT.sub(_escapes, whole)


def _escapes(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f")


def _make_safe(stream: TextIO) -> None:
    """No character may end a command: what the stream cannot encode is written as ``?``."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    if sys.platform == "win32":
        import colorama

        colorama.just_fix_windows_console()
