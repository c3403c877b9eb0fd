"""Text from outside, made fit for a terminal: nothing in it may move a cursor or set a colour.

Page titles, errors, steps and file names come from strangers. :func:`clean` turns every control
character, escape sequence and bidirectional mark into something visible or nothing, and
:func:`clip` cuts by the columns that a terminal needs, not by characters.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

#: A whole escape sequence: CSI … final byte, OSC … BEL or ST, or ESC and one more.
_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    # An 8-bit string without an end is text in a wrong encoding rather: only its start goes.
    r"|[\x90\x98\x9d-\x9f][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
_SPACES = re.compile(r"\s+")
#: A word of a shell's, with what is quoted in it.
_SHELL_WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|\S)+")
#: Our own colours, which take no columns.
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def clean(text: object) -> str:
    """``text`` on one line, without anything that a terminal would obey."""
    plain = _ESCAPE.sub("", str(text))
    if not (plain.isascii() and plain.isprintable()):
        plain = "".join(map(_visible, plain))
    return _SPACES.sub(" ", plain).strip()


def shown(text: object, most: int, *, keep_end: bool = False) -> str:
    """``text`` (``None`` is none) clean and cut to ``most`` characters, with ``…`` where something
    is missing: at its end, or at its beginning if ``keep_end``."""
    raw = "" if text is None else str(text)
    part = raw[-4 * most :] if keep_end else raw[: 4 * most]  # of megabytes nobody reads more
    plain = clean(part)
    if len(plain) <= most and len(part) == len(raw):
        return plain
    return "…" + plain[1 - most :] if keep_end else plain[: most - 1] + "…"


def path_here(path: Path) -> str:
    """A path as a person would type it where they are, if it lies below; cleaned."""
    here = Path.cwd()
    return clean(path.relative_to(here) if path.is_relative_to(here) else path)


def _visible(char: str) -> str:
    if char.isspace():
        return " "
    category = unicodedata.category(char)
    # Cc: controls, Cf: bidirectional and invisible marks, Cs: halves of surrogate pairs,
    # Zl and Zp: line separators. Cn and Co print as a box at worst.
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category in ("Cc", "Cf", "Zl", "Zp") else char


def width(text: str) -> int:
    """The columns that ``text`` takes on a terminal; our own colours take none."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    return sum(map(_char_width, _SGR.sub("", text)))


def _char_width(char: str) -> int:
    if char == "\N{VARIATION SELECTOR-16}":  # makes the symbol before it an emoji, two wide
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, columns: int, *, keep_end: bool = False) -> str:
    """``text`` (without colours) cut to ``columns``, with ``…`` where something is missing.

    ``keep_end`` cuts at the beginning: the end of a path says more than its root.
    """
    if width(text) <= columns:
        return text
    if columns <= 1:
        return "…"[:columns]
    taken: list[str] = []
    left = columns - 1
    for char in reversed(text) if keep_end else text:
        left -= _char_width(char)
        if left < 0:
            break
        taken.append(char)
    if not keep_end:
        return "".join(taken) + "…"
    while taken and _char_width(taken[-1]) == 0:  # an accent whose letter was cut away
        taken.pop()
    return "…" + "".join(reversed(taken))


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """``text`` filled with spaces to ``columns``; on the left side if ``right`` aligned."""
    fill = " " * max(0, columns - width(text))
    return fill + text if right else text + fill


def wrap(text: str, columns: int, *, indent: int = 0) -> list[str]:
    """Clean ``text`` in lines that fit ``columns`` less ``indent``, which is not in them. A longer
    word, a path say, has a line of its own: it is there to be copied."""
    room, lines = max(10, columns - indent), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and width(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def command_lines(command: str, columns: int) -> list[str]:
    """A command, which is never cut: it is there to be copied. One that is longer than ``columns``
    goes on in the next line where a word of it ends, as a shell lets it."""
    if width(command) <= columns or os.name == "nt":
        return [command]
    first, *words = _SHELL_WORD.findall(command)
    lines = [first]
    for word in words:
        if width(f"{lines[-1]} {word} \\") > columns and lines[-1] != first:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return lines
