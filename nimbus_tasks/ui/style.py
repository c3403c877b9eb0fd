"""Colours and signs, as far as a stream can show them."""

from __future__ import annotations

import os
from typing import NamedTuple, TextIO

from nimbus_tasks.ui.text import pad

#: The sign of each state of a page or a batch, and what stands for it where there is no UTF-8.
_SIGNS = {
    "uploading": ("📤", ">>"),
    "uploaded": ("📤", ">>"),
    "queued": ("📋", ".."),
    "processing": ("⚙️", "::"),
    "retrying": ("🔁", "::"),
    "cancelling": ("🛑", "xx"),
    "completed": ("✅", "ok"),
    "done": ("✅", "ok"),
    "failed": ("❌", "!!"),
    "partially_completed": ("⚠️", "!."),
    "cancelled": ("🚫", "xx"),
    "stalled": ("⏳", "??"),
    "ok": ("✅", "ok"),
    "warning": ("⚠️", "!."),
    "stopped": ("🛑", "xx"),
    "error": ("❌", "!!"),
    "batch": ("📦", "##"),
}
_COLOURS = {
    "completed": "32",
    "done": "32",
    "ok": "32",
    "failed": "31",
    "error": "31",
    "partially_completed": "33",
    "warning": "33",
    "stopped": "33",
    "stalled": "33",
    "processing": "33",
    "retrying": "33",
    "cancelling": "33",
    "cancelled": "90",
    "uploading": "34",
    "uploaded": "34",
    "queued": "34",
}
#: One character each, so that what was cut to a width keeps it.
_ASCII_ONLY = str.maketrans("…–·─█░▓▒→↻≥", "~-|-#.=x>*>")


class Style(NamedTuple):
    """What a stream can show: ``colour`` escape codes, ``unicode`` signs and bars."""

    colour: bool
    unicode: bool

    def paint(self, text: str, code: str) -> str:
        """``text`` in an SGR colour, e.g. ``32`` or ``1;31``, if colours are shown."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        """``text`` set off."""
        return self.paint(text, "1")

    def dim(self, text: str) -> str:
        """``text`` that matters less."""
        return self.paint(text, "90")

    def state(self, state: str, text: str | None = None) -> str:
        """``text``, or the state's name in words, in the colour of ``state``."""
        words = state.replace("_", " ") if text is None else text
        return self.paint(words, _COLOURS.get(state, "0"))

    def sign(self, state: str) -> str:
        """The sign of ``state``, two columns wide."""
        sign, plain = _SIGNS.get(state, ("❓", "??"))
        return pad(sign if self.unicode else plain, 2)

    def plain(self, text: str) -> str:
        """``text`` with ASCII in the place of our own typographic signs where there is no UTF-8."""
        return text if self.unicode else text.translate(_ASCII_ONLY)


def style_for(stream: TextIO) -> Style:
    """What ``stream`` can show. ``NO_COLOR`` and ``TERM=dumb`` switch colour off."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    return Style(colour=_shows_colour(stream), unicode=encoding.startswith("utf"))


def _shows_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty()
