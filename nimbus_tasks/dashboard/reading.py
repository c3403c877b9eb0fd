"""The store, from an event loop: its calls block, and it belongs to one thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store

T = TypeVar("T")
Job = Callable[[], None]


class NoStoreYetError(StoreError):
    """Nothing was uploaded to this project yet: there is nothing to be read, and nothing wrong."""


@dataclass
class Seen:
    """Whether there was a store at any time: if so, one that is missing has been taken away."""

    there: bool


class StoreThread:
    """Does one thing after the other with the project's store, on a thread of its own.

    The embedded store is opened anew for each thing, which costs nothing, so that a file that was
    moved away, or put back, is noticed. A store that lags behind its writers stays open until
    :meth:`release`, since what it has seen keeps it from going back in time. ``tell`` is called on
    the thread, in words, where the store has to wait.

    The thread is a daemon: a store that waits ten minutes for Cloudflare must not keep a process
    alive that a person has ended. To a write, that is as if it had been killed.
    """

    def __init__(
        self,
        project: Project,
        tell: Callable[[str], None] = lambda _: None,
        seen: Seen | None = None,
    ) -> None:
        self._project = project
        self._tell = tell
        self._seen = seen or Seen(project.has_store)
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._open = ExitStack()
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        #: Seconds by which a reader should stretch its interval: see :class:`Store`.
        self.read_pause = 0.0

    async def run(self, do: Callable[[Store], T]) -> T:
        """What ``do`` returns, called with the store. Raises what it raises, or what opening
        raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(setter: Callable[[Any], None], value: Any) -> None:
            if not done.done():  # nobody waits for it any more
                setter(value)

        def job() -> None:
            outcome: tuple[Callable[[Any], None], Any]
            try:
                outcome = done.set_result, self._do(do)
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                outcome = done.set_exception, error
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(settle, *outcome)

        self._submit(job)
        return await done

    def release(self) -> None:
        """Close the store when what is under way is done; the next use opens it again."""
        self._submit(self._let_go)

    def _let_go(self) -> None:
        # Nobody waits for it, and the thread has to go on whatever it meets.
        with suppress(StoreError, OSError):
            self._close()

    def _submit(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="store", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _do(self, do: Callable[[Store], T]) -> T:
        try:
            if self._store is None:
                self._check_there()
                opening = self._project.open_store(tell=self._tell)
                self._store = self._open.enter_context(opening)
                self._seen.there = True
            result = do(self._store)
            self.read_pause = self._store.read_pause
            return result
        except StoreError:
            self._close()
            raise
        finally:
            if self._store is not None and not self._store.lag_seconds:
                self._close()

    def _check_there(self) -> None:
        if self._project.has_store:
            return
        if not self._seen.there:
            raise NoStoreYetError("nothing was uploaded to this project yet")
        raise StoreError(
            f"{self._project.store_path} is gone",
            advice="Somebody has moved or deleted it: put it back.",
        )

    def _close(self) -> None:
        self._store = None
        self._open.close()
