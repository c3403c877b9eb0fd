"""``nimbus.batch.wait``: blocks until a batch has ended; the exit code is its outcome.

For build scripts: 0 if all pages are done, 3 if some failed, 7 if it was cancelled, 6 if it took
too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from invoke.context import Context

from nimbus_tasks.batch.monitor import watch_batch
from nimbus_tasks.command import (
    BATCH_HELP,
    JSON_HELP,
    Console,
    check_seconds,
    command,
    exit_with_outcome,
    project_root,
)
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import count_lines, heading
from nimbus_tasks.ui.progress import ProgressBar

DEFAULT_INTERVAL = 1.0
#: After so long without any change, with no page in flight, nobody seems to be at work.
IDLE_SECONDS = 10.0


def wait_for_batch(
    project: Project,
    store: Store,
    batch: str | None = None,
    *,
    interval: float = DEFAULT_INTERVAL,
    timeout: float | None = None,
    on_look: Callable[[BatchView], None] = lambda view: None,
    tell: Callable[[str], None] = lambda _: None,
) -> BatchView:
    """The batch (the latest, if left out) as it has ended; ``on_look`` is told of each look.

    Raises :class:`TimedOutError` if it has not ended within ``timeout`` seconds.
    """
    looks = watch_batch(project, store, batch, interval=interval, timeout=timeout, tell=tell)
    view = next(looks)
    on_look(view)
    for view in looks:
        on_look(view)
    return view


@command(
    help={
        "batch": BATCH_HELP,
        "interval": f"seconds between two looks (default: {DEFAULT_INTERVAL:g})",
        "timeout": "give up after so many seconds, with exit code 6",
        "json": JSON_HELP,
    }
)
def wait(
    c: Context,
    batch: str | None = None,
    interval: str | None = None,
    timeout: str | None = None,
    json: bool = False,
) -> BatchView:
    """Block until a batch has ended."""
    console = Console(json_only=json)
    every = check_seconds(interval, "--interval") or DEFAULT_INTERVAL
    most = check_seconds(timeout, "--timeout")
    project = load_project(project_root(c))
    with _Waiting(console) as bar, project.open_store(tell=bar.write) as store:
        view = wait_for_batch(
            project, store, batch, interval=every, timeout=most, on_look=bar.look, tell=bar.write
        )
    if json:
        console.document(view.to_json())
    else:
        style, columns = console.style, console.columns
        console.say(*heading(view, style, columns, utc_now()), *count_lines(view, style, columns))
    exit_with_outcome(view.status)
    return view


class _Waiting(ProgressBar):
    """A bar of pages that have ended, and a word where nobody seems to be at work."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._ended: int | None = None
        self._since = time.monotonic()
        self._told = False

    def look(self, view: BatchView) -> None:
        ended, now = view.tally.ended, time.monotonic()
        if self._ended is None:
            self.begin("Waiting", view.tally.total)
            self.advance(ended)
        elif ended != self._ended or len(view.in_flight) > len(view.stalled):
            self.advance(ended - self._ended)
            self._since = now
        elif not self._told and now - self._since > IDLE_SECONDS:
            self.write(
                "Its upload seems to be cut off. Go on with:"
                f" invoke nimbus.upload --batch={view.head.batch_id}"
                if view.status == "uploading"
                else "Nobody seems to work on it. Start a worker with: invoke nimbus.worker"
            )
            self._told = True
        self._ended = ended
