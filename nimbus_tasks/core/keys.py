"""Ids and keys: how they are made, and how those from outside are checked.

An id that comes from a command line, a configuration or somebody else's record is checked here
before it reaches a key, a path or a screen.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timezone

from nimbus_tasks.core.errors import UsageError

#: Longer ids would not fit three to a key of 512 bytes, Cloudflare's limit.
MAX_ID_LENGTH = 128
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID_LENGTH}}}")
_ID_CHARACTERS = re.compile(r"[A-Za-z0-9_-]+")
_ID_LENGTHS = set(range(1, MAX_ID_LENGTH + 1))

_NO_DIGITS = re.compile(r"[^0-9]+")
_QUEUE_ITEM = re.compile(r"queue:[^:]*:\d\d:\d*:[^:]*", re.ASCII | re.DOTALL)

LOWEST_PRIORITY, HIGHEST_PRIORITY = 1, 10


def is_id(text: object) -> bool:
    """Whether ``text`` may stand in a key: letters, digits, ``_`` and ``-``, 1 to 128 of them."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def are_ids(texts: Collection[str]) -> bool:
    """Whether all ``texts`` are ids; quicker than :func:`is_id` for each."""
    lengths = set(map(len, texts))
    if not lengths <= _ID_LENGTHS:
        return False
    return not texts or _ID_CHARACTERS.fullmatch("".join(texts)) is not None


def check_id(text: str, what: str) -> str:
    """Return ``text`` if it is an id; otherwise raise :class:`UsageError` naming ``what``."""
    if is_id(text):
        return text
    shown = text if len(text) <= 40 else text[:39] + "…"
    raise UsageError(
        f"{what} {shown!r} is not an id",
        advice=f"An id has 1 to {MAX_ID_LENGTH} letters, digits, '_' or '-'.",
    )


def new_project_id() -> str:
    """``proj_`` and 12 random hex digits."""
    import secrets  # it brings the whole of OpenSSL, which most commands do not need

    return f"proj_{secrets.token_hex(6)}"


def new_batch_id(moment: datetime, taken: int = 0) -> str:
    """``batch_YYYYMMDD_HHMMSS`` in UTC; ``taken`` > 0 adds a number for one more in that second."""
    stem = moment.astimezone(timezone.utc).strftime("batch_%Y%m%d_%H%M%S")
    return f"{stem}_{taken + 1}" if taken else stem


def page_id_for(project_id: str, source_path: str) -> str:
    """``page_`` and 12 hex digits of MD5 over project id and source path.

    MD5 spreads names here and protects nothing; two paths that meet are refused by upload.
    """
    import hashlib  # as above

    text = f"{project_id}:{source_path}".encode("utf-8", "surrogatepass")
    digest = hashlib.md5(text, usedforsecurity=False)
    return f"page_{digest.hexdigest()[:12]}"


def page_prefix(project_id: str) -> str:
    """The prefix of all page records of a project."""
    return f"page:{project_id}:"


def page_key(project_id: str, page_id: str) -> str:
    """Where a page's content and its optimization lie."""
    return f"page:{project_id}:{page_id}"


def status_prefix(project_id: str) -> str:
    """The prefix of all pages' status records of a project."""
    return f"status:{project_id}:"


def status_key(project_id: str, page_id: str) -> str:
    """Where a page's status record lies: the truth about the page."""
    return f"status:{project_id}:{page_id}"


def logs_prefix(project_id: str) -> str:
    """The prefix of all pages' logs of a project."""
    return f"logs:{project_id}:"


def logs_key(project_id: str, page_id: str) -> str:
    """Where a page's log entries lie."""
    return f"logs:{project_id}:{page_id}"


def tick_key(project_id: str) -> str:
    """Where a tick of the Worker keeps what the next one is to know; no other program needs it."""
    return f"cloud:{project_id}:tick"


def batch_prefix(project_id: str) -> str:
    """The prefix of all batch records of a project."""
    return f"batch:{project_id}:"


def batch_key(project_id: str, batch_id: str) -> str:
    """Where a batch record lies."""
    return f"batch:{project_id}:{batch_id}"


def superseded_prefix(project_id: str, batch_id: str) -> str:
    """The prefix of the last states, in this batch, of pages that a later batch took over."""
    return f"superseded:{project_id}:{batch_id}:"


def superseded_key(project_id: str, batch_id: str, page_id: str) -> str:
    """Where the last state of a page in a batch is kept when a later batch takes the page over."""
    return f"superseded:{project_id}:{batch_id}:{page_id}"


def queue_prefix(project_id: str) -> str:
    """The prefix of all queue items of a project."""
    return f"queue:{project_id}:"


def queue_key(project_id: str, page_id: str, priority: int, queued_at: str) -> str:
    """One key an item, sorting in the order of claiming: highest priority, then oldest, first."""
    place = f"{HIGHEST_PRIORITY - priority:02d}:{digits_of(queued_at)}"
    return f"queue:{project_id}:{place}:{page_id}"


def is_queue_item(key: str) -> bool:
    """Whether a key under :func:`queue_prefix` is that of an item; others are somebody else's."""
    return _QUEUE_ITEM.fullmatch(key) is not None


def digits_of(moment: str) -> str:
    """The digits of a recorded time, which sort as the times do."""
    return _NO_DIGITS.sub("", moment)


def last_part(key: str) -> str:
    """The id at the end of a key: the page's or the batch's."""
    return key.rpartition(":")[2]
