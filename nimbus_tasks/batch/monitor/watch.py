"""Looking at a batch again and again until it has ended, whatever the store does meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.errors import InterruptedByUserError, StoreError, TimedOutError
from nimbus_tasks.core.project import WORKER_ENGINES, Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.figures import duration, pages

DEFAULT_INTERVAL = 5.0
#: A screen is drawn anew at least this often, since ages grow while nothing else changes.
_TICK_SECONDS = 1.0
#: A look that takes no longer than this is no outage.
_PATIENCE_SECONDS = 3.0
#: With ``timeout`` over, a look that is under way has so long to answer.
_GRACE_SECONDS = 3.0
#: A look that is under way when nobody watches any more has so long to close its store.
_FAREWELL_SECONDS = 0.3


def detached(view: BatchView | None, task: str) -> InterruptedByUserError:
    """The error that tells of Ctrl-C: only the watching of ``task`` has ended. It says how to come
    back; ``view`` is the last look at the batch, if there was one."""
    if view is None:
        return InterruptedByUserError("detached")
    batch_id = view.head.batch_id
    at_work = len(view.in_flight) > len(view.stalled)
    goes_on = at_work or view.engine in WORKER_ENGINES
    how = "goes on" if goes_on else "stays as it is, and waits for a worker"
    return InterruptedByUserError(
        f"detached; {batch_id} {how}",
        advice="To come back:",
        command=f"invoke {task} --batch={batch_id}",
    )


def watch_batch(
    project: Project,
    store: Store,
    batch: str | None = None,
    *,
    interval: float = DEFAULT_INTERVAL,
    timeout: float | None = None,
    outlast: tuple[type[StoreError], ...] = (),
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _: None,
    lost: Callable[[StoreError], None] = lambda _: None,
) -> Iterator[BatchView]:
    """Look at a batch every ``interval`` seconds until it has ended; the last look is the end.

    The batch is chosen once: a later one does not take the place of ``latest``. Where the store's
    budget runs low the interval is stretched, and ``tell`` is called with words that say so. Once
    the batch is found, errors of the ``outlast`` kinds do not end the watching: ``lost`` is called
    with each, and the store is opened anew until it answers. Raises :class:`TimedOutError` after
    ``timeout`` seconds.
    """
    stretched = False
    batch_id = batches.find(store, project.project_id, batch).batch_id
    deadline = None if timeout is None else time.monotonic() + timeout
    known: BatchView | None = None
    current: Store | None = store
    with ExitStack() as reopened:
        while True:
            pause = 0.0
            try:
                if current is None:
                    current = reopened.enter_context(project.open_store(tell=tell))
                known = view_batch(project, current, batch_id)
                pause = current.read_pause
            except outlast as error:
                lost(error)
                reopened.close()
                current = None
            else:
                yield known
                if known.is_finished:
                    return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise _timed_out(batch_id, timeout, known)
            if pause and not stretched:
                every = duration(interval + pause)
                tell(f"few requests are left to the account: looks every {every}")
            stretched = pause > 0
            sleep(interval + pause if left is None else min(interval + pause, left))


def _timed_out(batch_id: str, timeout: float | None, known: BatchView | None) -> TimedOutError:
    after = f"after {duration(timeout)}"
    if known is None:
        return TimedOutError(f"the store has not said {after} how {batch_id} stands")
    ended = f"{known.tally.ended:,} of {pages(known.tally.total)} ended"
    return TimedOutError(f"{batch_id} is still {known.status.replace('_', ' ')} {after}: {ended}")


@dataclass(frozen=True)
class Sight:
    """What is known of a batch at a moment: ``view`` (``None`` before the first look) as it was
    ``seen``; ``trouble`` is why the store does not answer, ``told`` what it says while it waits,
    ``asked`` when the look began that is under way. Both moments are of ``time.monotonic``: the
    machine's clock may be set meanwhile."""

    view: BatchView | None = None
    seen: float | None = None
    trouble: str = ""
    told: str = ""
    asked: float | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the store should have answered by now."""
        waits = 0.0 if self.asked is None else time.monotonic() - self.asked
        return bool(self.trouble) or waits > _PATIENCE_SECONDS

    @property
    def age(self) -> float:
        """Seconds since the look."""
        return 0.0 if self.seen is None else time.monotonic() - self.seen


class _StoppedError(Exception):
    """Nobody looks at the screen any more."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def follow(
    project: Project,
    batch: str | None = None,
    *,
    interval: float = DEFAULT_INTERVAL,
    timeout: float | None = None,
    outlast: tuple[type[StoreError], ...] = (StoreError,),
) -> Generator[Sight, None, None]:
    """What is known of a batch: at each change, each second, and when the terminal is resized.

    The looks are made by :func:`watch_batch` in a thread of its own, with a store of its own: a
    store that hangs keeps neither the screen nor Ctrl-C. Close it to end the watching.
    """
    events: SimpleQueue[Mapping[str, Any] | _End] = SimpleQueue()
    stop = threading.Event()

    def sleep(seconds: float) -> None:
        pause(stop, seconds)
        if stop.is_set():
            raise _StoppedError
        events.put({"asked": time.monotonic()})

    def watch() -> None:
        try:
            with project.open_store(tell=lambda words: events.put({"told": words})) as store:
                for view in watch_batch(
                    project,
                    store,
                    batch,
                    interval=interval,
                    timeout=timeout,
                    outlast=outlast,
                    sleep=sleep,
                    tell=lambda words: events.put({"told": words}),
                    lost=lambda error: events.put({"trouble": error.message, "asked": None}),
                ):
                    seen = {"view": view, "seen": time.monotonic(), "trouble": "", "told": ""}
                    events.put({**seen, "asked": None})
        except BaseException as error:  # noqa: BLE001 - it is raised where the screen is
            events.put(_End(error))
        else:
            events.put(_End())

    watcher = threading.Thread(target=watch, name="nimbus-watch", daemon=True)
    deadline = None if timeout is None else time.monotonic() + timeout + _GRACE_SECONDS
    sight = Sight(asked=time.monotonic())
    with _woken_by_resize(lambda: events.put({})):
        watcher.start()
        try:
            while True:
                try:
                    event = events.get(timeout=_TICK_SECONDS)
                except Empty:
                    event = {}
                if isinstance(event, _End):
                    if event.error is not None:
                        raise event.error
                    return
                sight = replace(sight, **event)
                yield sight
                if deadline is not None and time.monotonic() > deadline:
                    head = sight.view and sight.view.head.batch_id
                    raise _timed_out(head or batch or "the latest batch", timeout, sight.view)
        finally:
            stop.set()
            watcher.join(_FAREWELL_SECONDS)  # a store that hangs must not keep us


def pause(stop: threading.Event, seconds: float) -> None:
    """Wait between two looks, or until there is to be none any more."""
    stop.wait(seconds)


@contextmanager
def _woken_by_resize(wake: Callable[[], None]) -> Iterator[None]:
    resized = getattr(signal, "SIGWINCH", None)
    if resized is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(resized, lambda *_: wake())
    try:
        yield
    finally:
        signal.signal(resized, before)
