"""Workers KV in memory, without HTTP: stale, throttled, and losing answers, as a test says.

A :class:`Cloud` keeps the history of each key; a :class:`MemoryClient` is what a store talks to, in
the place of :class:`~nimbus_tasks.kv.cloudflare.client.KVClient`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nimbus_tasks.core.errors import StoreUnreachableError
from nimbus_tasks.kv.store import Entry, KeyInfo, sound_metadata

#: Value and metadata as JSON; ``None`` for a deletion.
Version = tuple[float, tuple[str, str] | None]


class Killed(BaseException):
    """The process was killed here."""


class Cloud:
    """The keys with their histories.

    A read sees the state of up to ``lag`` seconds ago, key by key. ``trouble`` is the share of
    requests that fail: half of them before anything is done, half when all is done. ``kill_in``
    counts down the pairs that are written until the writer is killed.
    """

    def __init__(self, clock: Callable[[], float], seed: int = 0, *, lag: float = 0.0) -> None:
        self._clock = clock
        self.random = random.Random(seed)
        self.lag = lag
        self.trouble = 0.0
        self.kill_in: int | None = None
        self.written_twice: list[str] = []
        self._history: dict[str, list[Version]] = {}

    def write(self, key: str, version: tuple[str, str] | None) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                raise Killed
        history = self._history.setdefault(key, [])
        if history and self._clock() - history[-1][0] < 1.0:
            self.written_twice.append(key)
        history.append((self._clock(), version))

    def read(self, key: str) -> tuple[str, str] | None:
        """The value as some place has it."""
        seen_at = self._clock() - self.random.uniform(0, self.lag)
        found = None
        for at, version in self._history.get(key, ()):
            if at <= seen_at:
                found = version
        return found

    def all_keys(self) -> list[str]:
        return sorted(self._history)

    def truth(self, key: str) -> Any:
        """The value as it is."""
        history = self._history.get(key)
        version = history[-1][1] if history else None
        return None if version is None else json.loads(version[0])


class MemoryClient:
    """One process's connection."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.requests_made = 0
        self.is_local = True
        self.requests_left: int | None = None

    def pause_seconds(self) -> float:
        return 0.0

    def check_namespace(self) -> None:
        pass

    def close(self) -> None:
        pass

    def list_keys(self, prefix: str, limit: int | None = None) -> Iterator[list[KeyInfo]]:
        with self._request():
            found = []
            for key in self._cloud.all_keys():
                version = self._cloud.read(key) if key.startswith(prefix) else None
                if version is not None:
                    found.append(KeyInfo(key, sound_metadata(json.loads(version[1]))))
        yield found[:limit]

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        with self._request():
            versions = {key: self._cloud.read(key) for key in keys}
        return {
            k: Entry(k, v[0], sound_metadata(json.loads(v[1])))
            for k, v in versions.items()
            if v is not None
        }

    def put_many(self, entries: Iterable[Entry]) -> None:
        with self._request():
            for key, value, metadata in entries:
                self._cloud.write(key, (value, json.dumps(metadata)))

    def delete_many(self, keys: Iterable[str]) -> None:
        with self._request():
            for key in keys:
                self._cloud.write(key, None)

    def _request(self) -> _Request:
        self.requests_made += 1
        return _Request(self._cloud)


class _Request:
    """Goes wrong before what is done in it, or after."""

    def __init__(self, cloud: Cloud) -> None:
        wrong = cloud.random.random() < cloud.trouble
        self._before = wrong and cloud.random.random() < 0.5
        self._after = wrong and not self._before

    def __enter__(self) -> None:
        if self._before:
            raise StoreUnreachableError("nobody answers")

    def __exit__(self, kind: object, *exc: object) -> None:
        if self._after and kind is None:
            raise StoreUnreachableError("the answer was lost")
