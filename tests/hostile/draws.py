"""Hostile texts, numbers and JSON, drawn by a seeded ``random.Random``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

#: What a terminal obeys, or shows as something else than it is. ``\rOVER`` is looked for by name,
#: since a progress bar writes carriage returns of its own; its other sequences are none of these.
CONTROLS = (
    "\x1b[35mpink", "\x1b[2J", "\x1bc", "\x1b]52;c;aGk=\x07", "\x1b]0;title\x07", "\x1b",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x1bPq#0\x1b\\", "\x9b35m", "\x9d0;t\x9c",
    "\x90q\x9c", "\x85", "\x7f", "\x08\x08", "\rOVER", "\n\nline", "\t", "\u202eevil\u202c",
    "\u2066x\u2069", "\u200b", "\ufeff", "\u2028", "\u061c", "\U000e0041", "\x00",
)  # fmt: skip
WORDS = (
    "page",
    "",
    " ",
    "done",
    "queued",
    "failed",
    "latest",
    "null",
    "é",
    "漢字",
    "👩‍👩‍👧",
    "{}",
    "%s",
    "../../x",
)
TIMES = (
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "2026-13-01",
    "zzz", "", "2026-11-24", "1970-01-01T00:00:00Z", "2099-01-01T00:00:00.000000Z", "٢٠٢٦",
)  # fmt: skip
INFINITE, DEEP = float("inf"), "@deep@"
NUMBERS = (
    -1, 0, 1, 10**30, -(10**30), 2**53, 2**53 - 1, 1e308, -0.0, 5e-324, 0.5, 100, True, False,
    INFINITE, -INFINITE, float("nan"),
)  # fmt: skip
MEGABYTE = 2**20
#: The nesting at which Python's parser, or only what writes JSON again, gives up.
DEPTHS = (50, 150, 250, 480, 900, 940, 960, 980, 1000, 5000, 100_000)


def text(rng: random.Random, *, large: float = 0.02) -> str:
    """Words and control sequences; now and then a megabyte of them, or half a surrogate pair."""
    parts = [rng.choice(rng.choice((CONTROLS, WORDS))) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.08:
        parts.append("\ud800")
    whole = "".join(parts)
    return (whole or "x") * (MEGABYTE // len(whole or "x")) if rng.random() < large else whole


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any type, for :func:`dumped`."""
    kind = rng.randrange(10 if depth < 2 else 7)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return text(rng)
    if kind == 4:
        return rng.choice(TIMES)
    if kind == 5:
        return None if rng.random() < 0.7 else DEEP
    if kind == 6:
        return rng.choice(([], {}, [[]], [None]))
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {text(rng, large=0): value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def dumped(rng: random.Random, document: Any) -> str:
    """``document`` as text that may well be no JSON: with NaN, 1e400, thousands of digits, and
    nesting of any depth."""
    found = json.dumps(document)
    found = found.replace("Infinity", rng.choice(("Infinity", "1e400", "1" * 5000)))
    depth = rng.choice(DEPTHS)
    opens, closes = rng.choice((("[", "]"), ('{"a":', "}")))
    return found.replace(
        f'"{DEEP}"', opens * depth + ("1" if opens != "[" else "") + closes * depth
    )


def spoiled(rng: random.Random, sound: Mapping[str, Any]) -> dict[str, Any]:
    """A record with some fields wrong, some missing and some that nobody knows."""
    record: dict[str, Any] = json.loads(json.dumps(sound))
    for _ in range(rng.randint(1, 4)):
        inside = record
        while inside:
            name = rng.choice(list(inside))
            if isinstance(inside[name], dict) and inside[name] and rng.random() < 0.6:
                inside = inside[name]
                continue
            how = rng.random()
            if how < 0.2:
                del inside[name]
            elif how < 0.3:
                inside[text(rng, large=0)] = value(rng)
            else:
                inside[name] = value(rng)
            break
    return record


def raw(rng: random.Random, sound: Mapping[str, Any] | None = None) -> bytes:
    """What a file or a record holds: mostly a spoiled ``sound`` one, or else anything at all."""
    if sound is not None and rng.random() < 0.75:
        return dumped(rng, spoiled(rng, sound)).encode()
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: dumped(rng, value(rng)).encode(),
        lambda: text(rng).encode("utf-8", "replace"),
        lambda: rng.randbytes(rng.randint(0, 60)),
        lambda: b'{"path": "\xff\xfe\xc3"}',
        lambda: rng.choice((b"", b"null", b"[]", b"{}", b"{", b'"x"', b"\xef\xbb\xbf{}", b"NaN")),
        lambda: dumped(rng, DEEP).encode(),
    )
    return rng.choice(makers)()
