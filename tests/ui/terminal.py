"""A terminal that keeps what is written into it: as a stream, and as the screen it would show."""

from __future__ import annotations

import io
import re

_TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|(.)", re.DOTALL)


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal, and keeps every write for itself."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.writes.append(text)
        return len(text)

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self.writes)


class Screen:
    """What a terminal shows of single-width text; a VT100 as far as our live block needs one.

    A character in the last column leaves the cursor there until the next one comes, as in xterm
    and the Linux console: what then clears to the end of the line takes that character too.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.cells = [[" "] * columns for _ in range(lines)]
        self.row = self.column = 0
        self.wraps = False
        self.cursor_shown = True
        self.scrolled: list[str] = []

    def feed(self, text: str) -> Screen:
        """Obey ``text``; an unknown sequence is an error."""
        for parameters, final, char in _TOKEN.findall(text):
            if char:
                self._put(char)
            else:
                self._obey(parameters, final)
        return self

    @property
    def shown(self) -> list[str]:
        """The lines on the screen, without the empty rest."""
        rows = ["".join(row).rstrip() for row in self.cells]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def _put(self, char: str) -> None:
        if char == "\r":
            self.column, self.wraps = 0, False
        elif char == "\n":
            self._next_line()
        else:
            if self.wraps:
                self._next_line()
            self.cells[self.row][self.column] = char
            self.wraps = self.column == self.columns - 1
            self.column = min(self.column + 1, self.columns - 1)

    def _next_line(self) -> None:
        self.column, self.wraps = 0, False
        if self.row == self.lines - 1:
            self.scrolled.append("".join(self.cells.pop(0)).rstrip())
            self.cells.append([" "] * self.columns)
        else:
            self.row += 1

    def _obey(self, parameters: str, final: str) -> None:
        if final == "A":
            self.row = max(0, self.row - int(parameters or 1))
        elif final in ("K", "J") and not parameters:
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
            if final == "J":
                for row in range(self.row + 1, self.lines):
                    self.cells[row] = [" "] * self.columns
        elif final in ("l", "h") and parameters == "?25":
            self.cursor_shown = final == "h"
        elif final != "m":
            raise AssertionError(f"an unknown sequence: {parameters}{final}")
