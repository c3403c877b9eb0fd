"""Where a command writes: results to stdout, messages to stderr, and JSON alone if asked for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from nimbus_tasks.ui.style import Style, style_for
from nimbus_tasks.ui.text import clean

#: No line is longer than this where there is no terminal to ask.
DEFAULT_COLUMNS = 100


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

    def say(self, *lines: str) -> None:
        """Write lines for a person. They are clean already: see :func:`nimbus_tasks.ui.clean`."""
        for line in lines:
            print(self.style.plain(line), file=self._out)
        self._out.flush()

    def hint(self, command: str) -> None:
        """Name the command to type next: to a person at a terminal, not to a build's log."""
        if self._out.isatty():
            self.say(self.style.dim(f"   next: {command}"))

    def note(self, line: str) -> None:
        """Write a message that is not the result, to stderr."""
        print(self.error_style.plain(line), file=sys.stderr, flush=True)

    def error(self, message: str, advice: str | None = None) -> None:
        """Say on stderr, in one line, what is wrong and what to do."""
        style = self.error_style
        line = style.sign("error") + " " + style.state("error", clean(message))
        if advice:
            line += " " + style.plain("· ") + clean(advice)
        self.note(line)

    def document(self, document: Any) -> None:
        """Write one JSON document to stdout."""
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        print(text.encode("utf-8", "replace").decode(), flush=True)

    def documents(self, documents: Iterable[Any]) -> None:
        """Write JSON documents to stdout, one a line."""
        for document in documents:
            print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal; off one, columns of a file that people read."""
    fallback = (DEFAULT_COLUMNS, 24)
    if not stream.isatty():
        return fallback
    size = shutil.get_terminal_size(fallback)
    return max(20, size.columns), max(4, size.lines)


def _make_safe(stream: TextIO) -> None:
    """No character may end a command: what the stream cannot encode is written as ``?``."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    if sys.platform == "win32":
        import colorama

        colorama.just_fix_windows_console()
