"""What the suite's tests have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from nimbus_tasks.kv.store import Entry, KeyValues, Store

Reopen = Callable[[], Store]

#: Values as JSON text, of every kind that gets lost in conversions.
VALUES = [
    "{}",
    '"text"',
    "1e3",
    '{ "spaces" :  "are kept" }\n',
    '{"b":1,"a":2}',
    '"é😀\u2028\u00a0"',
    r'"\u0000\ud83d\ude00\\"',
    "null",
    "not JSON at all: a store does not look into values",
    "'; DROP TABLE keys; --",
    "a,b\r\nc\td",
]
METADATA: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"text": "é😀\n\"'", "none": None, "yes": True, "float": 0.5, "big": 2**53 - 1},
    {"nested": {"list": [1, [2, {}]]}, "": "empty name"},
]


class BrokenOffError(Exception):
    """Raised by a test in the middle of a transaction."""


def fill(store: KeyValues, *keys: str) -> None:
    """Write those keys, each with its own name as value."""
    store.put_many([Entry(key, f'"{key}"') for key in keys])


def keys(store: KeyValues, prefix: str, limit: int | None = None) -> list[str]:
    """The keys that a scan finds, in its order."""
    return [info.key for info in store.scan(prefix, limit=limit)]


def break_off(broken: type[BaseException]) -> NoReturn:
    """End in an exception."""
    raise broken


@contextmanager
def broken_off(store: Store, broken: type[BaseException] = BrokenOffError) -> Iterator[KeyValues]:
    """A transaction that ends in an exception, which comes through."""
    try:
        with store.transaction() as tx:
            yield tx
            break_off(broken)
    except broken:
        return
    pytest.fail("the transaction has swallowed the exception")


def metadata_of(size: int) -> dict[str, str]:
    """Metadata that takes so many bytes serialised."""
    return {"a": "x" * (size - len('{"a":""}'))}
