"""Reading the store for all who watch, once: what ten tabs show costs what one does.

A :class:`Watch` reads one thing again and again, as long as somebody watches it, and keeps
its last :class:`State`. Who watches gets the state as it is, and then every later one that it has
the time for: a slow one skips some, and none ever waits for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from nimbus_tasks.core.errors import NimbusError, NotFoundError
from nimbus_tasks.dashboard.reading import NoStoreYetError, StoreThread
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.text import clean

Document = Mapping[str, Any]
Look = Callable[[Store], Document]

#: The share of the time that looks may take: one at 100,000 pages keeps a core busy for long.
_MOST_BUSY = 0.3


@dataclass(frozen=True)
class Fault:
    """Why the last look failed, and in how many seconds the next one is."""

    message: str
    advice: str | None
    retry_seconds: float
    is_missing: bool = False


@dataclass(frozen=True)
class State:
    """What is known of a thing: ``document`` as it was read at ``read_at`` (of ``time.monotonic``),
    and the ``fault`` if it could not be read since. ``note`` says what the store waits for.
    ``version`` counts all changes of this state, ``changed`` those of the document."""

    version: int = 0
    document: Document | None = None
    changed: int = 0
    read_at: float = 0.0
    fault: Fault | None = None
    note: str = ""


class Watch:
    """One thing that is read while somebody watches it."""

    def __init__(
        self, thread: StoreThread, look: Look, interval: float, empty: Document | None = None
    ) -> None:
        self._thread = thread
        self._look = look
        self._empty = empty
        self._interval = interval
        self._state = State()
        self._news = asyncio.Event()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0
        self._is_over = False

    async def after(self, version: int) -> State | None:
        """The state as soon as it is later than ``version``; ``None`` when the dashboard ends."""
        while not self._is_over:
            if self._state.version > version:
                return self._state
            await self._news.wait()
        return None

    def begin(self) -> None:
        """One more watches."""
        self.watchers += 1
        if self._task is None and not self._is_over:
            self._task = asyncio.create_task(self._read_on())

    def leave(self) -> None:
        """One fewer watches; after the last one nothing is read any more."""
        self.watchers -= 1
        if not self.watchers:
            self._rest()

    def nudge(self) -> None:
        """Read at once: something has just been done."""
        self._nudge.set()

    def note(self, words: str) -> None:
        """Tell the watchers what the store waits for."""
        self._become(replace(self._state, note=clean(words)[:300]))

    def end(self) -> None:
        """Let go of all who watch."""
        self._is_over = True
        self._rest()
        self._news.set()

    def _rest(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _read_on(self) -> None:
        while True:
            began = time.monotonic()
            self._nudge.clear()
            pause = self._interval
            try:
                document = await self._look_once()
            except Exception as error:  # noqa: BLE001 - whatever a store holds, the watch goes on
                self._become(replace(self._state, fault=self._fault(error, pause), note=""))
            else:
                took = time.monotonic() - began
                pause = max(pause, took / _MOST_BUSY) + self._thread.read_pause
                self._read(document, pause)
            try:
                await asyncio.wait_for(self._nudge.wait(), pause)
            except asyncio.TimeoutError:
                continue

    async def _look_once(self) -> Document:
        try:
            return await self._thread.run(self._look)
        except NoStoreYetError:
            if self._empty is None:
                raise
            return self._empty

    def _read(self, document: Document, pause: float) -> None:
        before = self._state
        changed = before.changed + (document != before.document)
        is_stretched = pause > 2 * self._interval and pause >= 5
        note = f"looks every {pause:.0f} s: that is what the store bears" if is_stretched else ""
        self._become(
            State(
                document=document,
                changed=changed,
                read_at=time.monotonic(),
                note=note,
            )
        )

    @staticmethod
    def _fault(error: Exception, pause: float) -> Fault:
        message, advice = f"{type(error).__name__}: {error}", None
        if isinstance(error, NimbusError):
            message, advice = error.message, error.advice
        return Fault(
            message=clean(message)[:500],
            advice=clean(advice) if advice else None,
            retry_seconds=pause,
            is_missing=isinstance(error, NotFoundError),
        )

    def _become(self, state: State) -> None:
        self._state = replace(state, version=self._state.version + 1)
        self._news.set()
        self._news = asyncio.Event()


class Watches:
    """The watches of one dashboard, by what they read; one that nobody watches is forgotten."""

    def __init__(self, thread: StoreThread, interval: float) -> None:
        self._thread = thread
        self._interval = interval
        self._watches: dict[str, Watch] = {}
        self._is_over = False

    @contextmanager
    def watch(
        self, name: str, look: Callable[[], Look], empty: Document | None = None
    ) -> Iterator[Watch]:
        """Watch the thing called ``name``. ``look`` makes what reads it, if nobody watches it yet;
        ``empty`` is its document as long as the project has no store."""
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = Watch(self._thread, look(), self._interval, empty)
        if self._is_over:
            watch.end()
        watch.begin()
        try:
            yield watch
        finally:
            watch.leave()
            if not watch.watchers and self._watches.get(name) is watch:
                del self._watches[name]
                if not self._watches:
                    self._thread.release()

    def nudge(self) -> None:
        """Read everything at once that somebody watches."""
        for watch in self._watches.values():
            watch.nudge()

    def note(self, words: str) -> None:
        """Tell all who watch what the store waits for."""
        for watch in self._watches.values():
            watch.note(words)

    def end(self) -> None:
        """End every watch, and whatever is sent of it."""
        self._is_over = True
        for watch in list(self._watches.values()):
            watch.end()
