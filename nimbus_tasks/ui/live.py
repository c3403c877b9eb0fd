"""A block of lines that is redrawn in place, without flicker and only where it has changed.

The cursor goes up to the beginning of the block, each line is written over the old one and cleared
to its end: nothing is blank in between, and one write carries it all. Lines that are to stay go
above the block, where they scroll away as any output does. What the block has held last stays on
the screen when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from nimbus_tasks.ui.console import terminal_size
from nimbus_tasks.ui.text import width

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_CLEAR_LINE_END, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


class LiveBlock:
    """A block on a terminal; a context manager, so that the cursor comes back whatever happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: list[str] = []
        self._size = (0, 0)
        self._cursor_is_hidden = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines that a block may have now: one line less than the terminal."""
        columns, lines = terminal_size(self._stream)
        return columns, lines - 1

    def show(self, lines: Sequence[str], stays: Sequence[str] = ()) -> None:
        """Put ``lines`` in the place of what the block shows, if they differ from it; above them,
        once and for good, what ``stays``."""
        size = terminal_size(self._stream)
        kept = list(lines[: size[1] - 1])
        if not stays and kept == self._shown and size == self._size:
            return
        up = self._rows_above(size[0])
        move = f"\x1b[{up}A\r" if up else "\r"
        # A line that ends in the last column has nothing behind it: clearing would take its end.
        body = "".join(
            f"{line}\n" if width(line) >= size[0] else f"{line}{_CLEAR_LINE_END}\n"
            for line in (*stays, *kept)
        )
        self._cursor_is_hidden = True
        self._stream.write(f"{_HIDE_CURSOR}{move}{body}{_CLEAR_BELOW}")
        self._stream.flush()
        self._shown, self._size = kept, size

    def _rows_above(self, columns: int) -> int:
        """The rows that the block takes up, after a narrower terminal may have broken its lines."""
        rows = sum(max(1, -(-width(line) // columns)) for line in self._shown)
        return min(rows, terminal_size(self._stream)[1] - 1)

    def __enter__(self) -> LiveBlock:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._cursor_is_hidden:
            self._cursor_is_hidden = False
            # The terminal has written ^C here, if that was typed.
            self._stream.write(f"\r{_CLEAR_LINE_END}{_SHOW_CURSOR}")
            self._stream.flush()
