"""``nimbus.batch.monitor``: the live dashboard of one batch, until it ends.

On a terminal a block is redrawn when something has changed; elsewhere a line is written instead,
and with ``--json`` an object a line. The last frame stays, also if the store is lost.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import (
    BATCH_HELP,
    EXIT_STATUS_HELP,
    Console,
    check_seconds,
    command,
    exit_with_outcome,
    project_root,
    setting,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import TimedOutError
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import batch_lines
from nimbus_tasks.ui.figures import duration, pages, percent, rate, time_left
from nimbus_tasks.ui.live import LiveBlock
from nimbus_tasks.ui.text import clean, clip

DEFAULT_INTERVAL = 5.0
#: Lines of a frame besides those of pages in flight and failures.
_FIXED_LINES = 12


def watch_batch(
    project: Project,
    store: Store,
    batch: str | None = None,
    *,
    interval: float = DEFAULT_INTERVAL,
    timeout: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[BatchView]:
    """Look at a batch every ``interval`` seconds until it has ended; the last look is the end.

    The batch is chosen once: a later one does not take the place of ``latest``. Where the store's
    budget runs low the interval is stretched, and ``tell`` is told so. Raises
    :class:`TimedOutError` after ``timeout`` seconds.
    """
    stretched = False
    batch_id = batches.find(store, project.project_id, batch).batch_id
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with store.snapshot() as reading:
            head = batches.find(reading, project.project_id, batch_id)
            view = batches.look(reading, head, utc_now())
        yield view
        if view.is_finished:
            return
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimedOutError(
                f"{batch_id} is still {view.status.replace('_', ' ')} after"
                f" {duration(timeout)}: {view.tally.ended:,} of {pages(view.tally.total)} ended"
            )
        pause = store.read_pause
        if pause and not stretched:
            tell(f"few requests are left to the account: looks every {duration(interval + pause)}")
        stretched = pause > 0
        sleep(interval + pause if left is None else min(interval + pause, left))


@command(
    help={
        "batch": BATCH_HELP,
        "interval": f"seconds between two looks (default: {DEFAULT_INTERVAL:g})",
        "once": "show one frame and end",
        "timeout": "give up after so many seconds, with exit code 6",
        "exit-status": EXIT_STATUS_HELP,
        "json": "print an object a line on stdout at each change, and nothing else there",
    }
)
def monitor(
    c: Context,
    batch: str | None = None,
    interval: str | None = None,
    once: bool = False,
    timeout: str | None = None,
    exit_status: bool = False,
    json: bool = False,
) -> BatchView | None:
    """Watch a batch live until it ends."""
    console = Console(json_only=json)
    every = check_seconds(setting(c, "monitor", "interval", interval), "--interval")
    most = check_seconds(timeout, "--timeout")
    project = load_project(project_root(c))
    last: BatchView | None = None
    with (
        _screen(console, json=json, once=once) as screen,
        project.open_store(tell=screen.tell) as store,
    ):
        for last in watch_batch(
            project,
            store,
            batch,
            interval=every or DEFAULT_INTERVAL,
            timeout=most,
            tell=screen.tell,
        ):
            screen.show(last)
            if once:
                break
    if last is not None and exit_status:
        exit_with_outcome(last.status)
    return last


class _Screen:
    """Where the looks are shown; each kind below shows them its own way."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, view: BatchView) -> None:
        raise NotImplementedError

    def tell(self, words: str) -> None:
        """Say that the store waits, and why."""
        self.console.note(words)

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        return


def _screen(console: Console, *, json: bool, once: bool) -> _Screen:
    if json:
        return _JsonLines(console)
    if once:
        return _Frame(console)
    return _Dashboard(console) if sys.stdout.isatty() else _Lines(console)


class _Frame(_Screen):
    """One frame, however long."""

    def show(self, view: BatchView) -> None:
        console = self.console
        console.say(*batch_lines(view, console.style, console.columns, utc_now()))


class _Dashboard(_Screen):
    """A block that is redrawn in the size that the terminal has."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._block = LiveBlock(sys.stdout)
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            # Told to end, it ends as after Ctrl-C, so that the cursor comes back.
            self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._last: BatchView | None = None
        self._told = ""

    def tell(self, words: str) -> None:
        self._told = words
        if self._last is not None:
            self._draw(self._last)

    def show(self, view: BatchView) -> None:
        self._last, self._told = view, ""
        self._draw(view)

    def _draw(self, view: BatchView) -> None:
        columns, height = self._block.size
        style = self.console.style
        most = max(1, (height - _FIXED_LINES) // (2 if view.failures and view.in_flight else 1))
        lines = batch_lines(view, style, columns, utc_now(), most=most)
        if not view.is_finished:
            hint = clean(self._told) or "Ctrl-C ends the watching, not the batch"
            lines = [*lines[: height - 2], "", style.dim(f"   {clip(hint, columns - 4)}")]
        self._block.show([style.plain(line) for line in lines])

    def __exit__(self, *exc: object) -> None:
        self._block.__exit__(*exc)
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)


class _Lines(_Screen):
    """A line when something has changed, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last: Any = None
        self._failures: set[str] = set()

    def show(self, view: BatchView) -> None:
        counts = view.tally.counts
        seen = (view.status, counts, len(view.stalled))
        if seen == self._last:
            return
        self._last = seen
        for page in reversed(view.failures):
            attempt = f"{page.page_id}:{page.status.get('attempts')}"
            if attempt not in self._failures:
                self._failures.add(attempt)
                error = clean(page.status.get("error") or page.status.get("code") or "unknown")
                self.console.say(f"{_clock()}  failed: {clean(page.name)}: {error}")
        facts = [
            f"{view.tally.ended:,}/{pages(view.tally.total)}"
            f" {percent(view.tally.ended, view.tally.total)}",
            *(
                f"{counts[s]:,} {s}"
                for s in ("done", "failed", "cancelled", "processing")
                if counts[s]
            ),
            f"{len(view.stalled):,} stalled" if view.stalled else "",
            "" if view.is_finished else rate(view.pace.per_second),
            "" if view.is_finished else time_left(view.pace),
        ]
        text = ", ".join(fact for fact in facts if fact)
        self.console.say(f"{_clock()}  {view.status.replace('_', ' ')}: {text}")


class _JsonLines(_Screen):
    """An object a line when something has changed."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last: Any = None

    def show(self, view: BatchView) -> None:
        document = view.to_json()
        seen = (document["status"], document["counts"], document["stalled"])
        if seen != self._last:
            self._last = seen
            self.console.documents([document])


def _clock() -> str:
    return time.strftime("%H:%M:%S")
