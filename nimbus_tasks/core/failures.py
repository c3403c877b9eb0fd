"""Failed pages grouped by what went wrong, whatever page, number or moment the message names.

Pure: pages in, groups out, in time linear in the number of pages and in memory that is bounded,
however long the messages are and however many of them differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from nimbus_tasks.core.lifecycle import UNKNOWN_CODE
from nimbus_tasks.core.pages import PageInfo

#: Characters of a message that are read, kept, and compared: two that agree so far are one error,
#: since a listing may have cut them anywhere behind that.
_READ, _SHOWN, _COMPARED = 500, 200, 80
#: Groups kept while pages are counted, and after the small ones have gone to "other".
_MOST_KEPT, _KEPT = 1000, 500
_EXAMPLES = 5


@dataclass(frozen=True)
class FailureGroup:
    """Failed pages of one kind.

    ``message`` is what all of the pages say; where that differs from page to page it has
    placeholders (``<n>``, ``<id>``, ``<url>``, ``<path>``, ``<time>``, ``<text>``) for whatever may
    differ. It comes from outside and is not cleaned. ``examples``
    are the first few pages. ``superseded`` of the ``count`` pages belong to a later batch now and
    cannot be retried here. ``is_rest``: not one kind, but all that are in no group of their own.
    """

    code: str
    message: str
    count: int
    examples: tuple[PageInfo, ...]
    looks_transient: bool
    superseded: int = 0
    is_rest: bool = False


def group_failures(pages: Iterable[PageInfo], *, most: int = 20) -> list[FailureGroup]:
    """The failed ones of ``pages`` in at most ``most`` groups, biggest first. If some are in none
    of these, one more group counts them, the last, with :attr:`FailureGroup.is_rest`."""
    gathered = FailureGroups()
    for page in pages:
        gathered.add(page)
    return gathered.biggest(most)


@dataclass
class _Open:
    """A group that still grows. ``said`` is what every page of it says, if they say the same."""

    code: str
    message: str
    said: str | None = None
    examples: list[PageInfo] = field(default_factory=list)
    count: int = 0
    superseded: int = 0

    def add(self, page: PageInfo, said: str) -> None:
        self.count += 1
        if said != self.said:
            self.said = None
        self.superseded += bool(page.status.get("superseded_by"))
        if len(self.examples) < _EXAMPLES:
            self.examples.append(page)

    def take_over(self, other: _Open) -> None:
        self.count += other.count
        self.superseded += other.superseded
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]

    def closed(self, *, is_rest: bool = False) -> FailureGroup:
        transient = not is_rest and looks_transient(self.code, self.message)
        return FailureGroup(
            self.code,
            self.message if self.said is None else self.said,
            self.count,
            tuple(self.examples),
            transient,
            self.superseded,
            is_rest,
        )


class FailureGroups:
    """Groups that are filled page by page, for whoever goes through the pages anyway."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}
        self._other = _other()

    def add(self, page: PageInfo) -> int:
        """Count a page if it has failed, else ignore it; returns how many of its kind there are."""
        if page.status["status"] != "failed":
            return 0
        code = (page.status.get("code") or UNKNOWN_CODE)[:_SHOWN]
        error = page.status.get("error") or ""
        message, said = normalised(error), _on_one_line(error)[:_SHOWN]
        key = code, message[:_COMPARED]
        group = self._open.get(key)
        if group is None:
            if len(self._open) >= _MOST_KEPT:
                self._forget_small_ones()
            group = self._open[key] = _Open(code, message, said)
        group.add(page, said)
        return group.count

    def biggest(self, most: int) -> list[FailureGroup]:
        """The ``most`` biggest groups, biggest first, then "other" if it has any: if that would be
        one kind, its own name says more."""
        ordered = self._by_size()
        if len(ordered) == most + 1 and not self._other.count:
            most += 1
        other = _other()
        other.take_over(self._other)
        for _, group in ordered[most:]:
            other.take_over(group)
        groups = [group.closed() for _, group in ordered[:most]]
        return [*groups, other.closed(is_rest=True)] if other.count else groups

    def _by_size(self) -> list[tuple[tuple[str, str], _Open]]:
        return sorted(self._open.items(), key=lambda item: (-item[1].count, item[0]))

    def _forget_small_ones(self) -> None:
        ordered = self._by_size()
        for _, group in ordered[_KEPT:]:
            self._other.take_over(group)
        self._open = dict(ordered[:_KEPT])


def _other() -> _Open:
    return _Open("other", "kinds with fewer pages each")


#: What tells one error from another although it is a number: a status, an exit code, a signal, a
#: model.
_KEPT_NUMBERS = (
    r"\b(?:HTTP(?:/\d(?:\.\d)?)?|status|code|signal|errno|error)[ :=#(\[]{1,3}\d{1,5}\b"
    r"|(?:^|(?<=:\ ))[45]\d\d\b(?=\ [A-Za-z])|\banswered [45]\d\d\b"
    r"|\b[a-z]+-\d[a-z]\b"  # gpt-4o
)
_PLACEHOLDERS = (
    ("url", r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s\"'<>]+"),
    ("text", r"\"(?:[^\"\\]|\\.)*\"|(?<!\w)'[^']*'(?!\w)|`[^`]*`|“[^”]*”|«[^»]*»"),
    (
        "time",
        r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
        r"|\b\d\d:\d\d:\d\d(?:[.,]\d{1,9})?\b",
    ),
    ("path", r"\b[A-Za-z]:\\[^\s\"'<>|]+"),
    ("path", r"(?<![\w<])(?:~|\.{1,2})?(?:/[\w.@%+=,~-]+)+/?"),
    ("path", r"(?<![\w/])[\w.@%+=~-]+(?:/[\w.@%+=~-]+)*/[\w@%+=~-][\w.@%+=~-]*\.[A-Za-z]\w{0,7}\b"),
    ("path", r"(?<![\w/])[\w.@%+=~-]+/(?:[\w.@%+=~-]+/)+[\w.@%+=~-]*"),
    ("id", r"\b0[xX][0-9A-Fa-f]+\b"),
    ("id", r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b"),
    # Shorter ones are known by what they are called, or by letters between digits.
    ("id", r"\b(?:req|request|org|proj|trace|run|msg|resp|chatcmpl)[-_](?=[\w-]*[\dA-Z])[\w-]{4,}"),
    ("id", r"(?:(?<=\b[iI][dD] )|(?<=\b[iI][dD][:=])|(?<=\b[iI][dD]: ))(?=[\w-]*\d)[\w-]{4,}"),
    ("id", r"\b(?=[A-Za-z]*\d+[A-Za-z]+\d)[0-9A-Za-z]{8,}\b"),
    ("id", r"\b(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[\w-]{16,}\b"),
    # Of hex ids some have digits only, and are the same error all the same.
    ("id", r"\b(?=[a-f]*[0-9])[0-9a-f]{7,}\b"),
    ("n", r"(?<![\w.])(?:\d+(?:\.\d+)?(?:ms|[hms]))+\b"),  # 6m0s, 1h2m3s, 20ms
    ("n", r"(?<![A-Za-z_])\d+(?:[.,:]\d+)*|(?<=[A-Za-z_])\d{3,}"),
)
_VARYING = f"({_KEPT_NUMBERS})|" + "|".join(f"({pattern})" for _, pattern in _PLACEHOLDERS)
#: Compiled when the first failure is read: compiling takes longer than a look at a batch.
_compiled = cache(re.compile)


def normalised(message: str) -> str:
    """``message`` on one line, with placeholders for what differs from page to page: at most its
    first 200 characters, so that one of megabytes costs no more."""
    text = _on_one_line(message)
    varying = _compiled(_VARYING).sub(_placeholder, text)
    # A message that is one quoted text, as a KeyError's is, says nothing without it.
    return (text if varying == "<text>" else varying)[:_SHOWN]


def _on_one_line(message: str) -> str:
    return _compiled(r"\s+").sub(" ", message[:_READ]).strip()


def _placeholder(found: re.Match[str]) -> str:
    number = found.lastindex
    if number is None or number == 1:
        return found[0]
    return f"<{_PLACEHOLDERS[number - 2][0]}>"


#: A retry may well help against these …
_TRANSIENT = (
    r"timed?[ _-]?out|deadline.exceeded|took longer than"
    r"|rate.?limit|too many requests|throttl|slow ?down|overloaded"
    r"|temporar(?:y|ily)|try again (?:later|in)|service.?unavailable|bad.?gateway"
    r"|internal.?server.?error"
    r"|connection.?(?:error|reset|refused|aborted|closed|timed)|remote.end.closed|broken.?pipe"
    r"|remotedisconnected|incompleteread|econn(?:reset|refused|aborted)|etimedout|eai_again|epipe"
    r"|name resolution|unreachable"
    r"|\b(?:http(?:/[\d.]+)?|status|code)[ :=#(\[_]{1,3}(?:408|425|429|50[0234]|52\d)\b"
    r"|(?:^|: )(?:408|425|429|50[0234]|52\d)(?:$| [a-z])"
)
#: … and not against these, whatever else they say.
_LASTING = (
    r"insufficient.?quota|billing|permanent|invalid|unsupported|not allowed|forbidden"
    r"|unauthori[sz]ed|certificate|must be"
)
#: Errors of a program, not of the weather.
_PROGRAM_ERRORS = frozenset(
    (
        "ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "AssertionError",
        "NameError", "ImportError", "ModuleNotFoundError", "NotImplementedError", "SyntaxError",
        "UnicodeDecodeError", "UnicodeEncodeError", "ZeroDivisionError", "RecursionError",
        "bad_result", "too_large", "missing_page", "unreadable_page", "unreadable", "worker_lost",
    )
)  # fmt: skip


def looks_transient(code: str, message: str) -> bool:
    """Whether a retry may well help: timeouts, rate limits, 429, 5xx, broken connections.

    Where the signs are mixed it says no: a retry in vain costs more than a look.
    """
    if code in _PROGRAM_ERRORS or _compiled(_LASTING, re.IGNORECASE).search(f"{code} {message}"):
        return False
    transient = _compiled(_TRANSIENT, re.IGNORECASE)
    return transient.search(code) is not None or transient.search(message) is not None
