"""The bodies of bulk calls: what may be in them, and how they are cut and sent again in part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.store import MAX_KEY_BYTES, MAX_METADATA_BYTES, MAX_VALUE_BYTES, Entry

#: Of one request. The API takes ten times as much; in practice that runs into time-outs.
MAX_PAIRS = 1000
MAX_BODY_BYTES = 10_000_000
#: Characters of values that fit into such a body with what surrounds them, as a rule.
_CHARACTERS_A_REQUEST = 8_000_000


class Pending(NamedTuple):
    """A write that waits for the end of its transaction; ``entry`` is ``None`` for a deletion."""

    group: int
    entry: Entry | None


class Chunk:
    """The body of a bulk call, and where in it each key's part is: what failed is sent again."""

    def __init__(self, parts: dict[str, bytes], *, comes_last: bool = False) -> None:
        self.body = b"[" + b",".join(parts.values()) + b"]"
        self._spans: dict[str, slice] = {}
        at = 1
        for key, part in parts.items():
            self._spans[key] = slice(at, at + len(part))
            at += len(part) + 1
        #: Rewrites a key of an earlier chunk, and so must not overtake it.
        self.comes_last = comes_last

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def keys(self) -> list[str]:
        """The keys in it, in their order."""
        return list(self._spans)

    def only(self, keys: Iterable[str]) -> Chunk:
        """A chunk of those of its parts."""
        return Chunk({key: self.body[self._spans[key]] for key in keys})


def cut_into_chunks(parts: Iterable[tuple[str, bytes]]) -> Iterator[Chunk]:
    """Cut ``parts`` into bodies of bulk calls, of which one is in memory at a time."""
    sent: set[str] = set()
    pending: dict[str, bytes] = {}
    comes_last = False
    size = 1
    for key, part in parts:
        if key in pending:
            size -= len(pending.pop(key)) + 1
        is_full = len(pending) == MAX_PAIRS or size + len(part) + 1 > MAX_BODY_BYTES
        if pending and is_full:
            yield Chunk(pending, comes_last=comes_last)
            sent.update(pending)
            pending, comes_last, size = {}, False, 1
        pending[key] = part
        size += len(part) + 1
        comes_last = comes_last or key in sent
    if pending:
        yield Chunk(pending, comes_last=comes_last)


def pair(entry: Entry) -> bytes:
    """An entry as bulk write takes it. A write without metadata drops what was there."""
    pair: dict[str, Any] = {"key": entry.key, "value": entry.value}
    if entry.metadata is not None:
        pair["metadata"] = dict(entry.metadata)
    return dump(pair)


def dump(thing: object) -> bytes:
    """JSON as it is sent."""
    text = json.dumps(thing, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return checked_text(text).encode()


def checked_text(text: str) -> str:
    """``text``, if it can be sent. Raises :class:`StoreError`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreError("half of a surrogate pair is no text that a store can hold") from None
    return text


def check_limits(entry: Entry) -> Entry:
    """The entry, if every store would take it. Raises :class:`StoreError` for one that is too large
    or is no text: before it has cost a request."""
    key, value, metadata = entry
    if key in ("", ".", "..") or len(checked_text(key).encode()) > MAX_KEY_BYTES:
        raise StoreError(f"no key of a store, or longer than {MAX_KEY_BYTES} bytes: {key[:60]!r}")
    size = len(checked_text(value)) * 4
    if size > MAX_VALUE_BYTES and len(value.encode()) > MAX_VALUE_BYTES:
        raise StoreError(f"the value of {key} is larger than {MAX_VALUE_BYTES} bytes")
    if metadata is None:
        return entry
    try:
        # As long as with ASCII escapes: what fits here fits every store.
        text = json.dumps(dict(metadata), separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise StoreError(f"the metadata of {key} holds a number that is not finite") from None
    if len(text) > MAX_METADATA_BYTES:
        raise StoreError(f"the metadata of {key} is larger than {MAX_METADATA_BYTES} bytes")
    if "\\ud" in text:
        dump(dict(metadata))
    return entry


def in_requests(pending: dict[str, Pending]) -> Iterator[list[Entry]]:
    """The entries to put, in the order of their groups. What is yielded together may be sent side
    by side: one group, or several of which one request takes all. The next ones have to wait until
    it is written."""
    ready: list[Entry] = []
    size, group = 0, 0
    for write in pending.values():
        if write.entry is None:
            continue
        if ready and write.group != group:
            rest = [w.entry for w in pending.values() if w.entry and w.group == write.group]
            size_of_rest = sum(len(entry.value) for entry in rest)
            fits = len(ready) + len(rest) <= MAX_PAIRS
            if not fits or size + size_of_rest > _CHARACTERS_A_REQUEST:
                yield ready
                ready, size = [], 0
        group = write.group
        ready.append(write.entry)
        size += len(write.entry.value)
    if ready:
        yield ready
