"""``nimbus.batch.wait``: blocks until a batch has ended; the exit code is its outcome.

For build scripts: 0 if all pages are done, 3 if some failed, 7 if it was cancelled, 6 if it took
too long.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

from invoke.context import Context

from nimbus_tasks.batch.monitor.watch import Sight, detached, follow
from nimbus_tasks.command import (
    BATCH_HELP,
    JSON_HELP,
    check_seconds,
    command,
    exit_with_outcome,
    project_root,
)
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import StoreUnreachableError
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.ui.batch_view import count_lines, heading
from nimbus_tasks.ui.console import Console, terminal_size
from nimbus_tasks.ui.figures import duration
from nimbus_tasks.ui.next_steps import show_next
from nimbus_tasks.ui.progress import ProgressBar
from nimbus_tasks.ui.text import clean, command_lines

DEFAULT_INTERVAL = 1.0
#: After so long without any change, with no page in flight, nobody seems to be at work.
IDLE_SECONDS = 10.0
#: What passes by itself; a store that is gone or refuses ends the waiting.
_OUTLASTED = (StoreUnreachableError,)


def wait_for_batch(
    project: Project,
    batch: str | None = None,
    *,
    interval: float = DEFAULT_INTERVAL,
    timeout: float | None = None,
    on_sight: Callable[[Sight], None] = lambda sight: None,
) -> BatchView:
    """The batch (the latest, if left out) as it has ended; ``on_sight`` is told what is known of it
    meanwhile, as :func:`~nimbus_tasks.batch.monitor.watch.follow` says it.

    Once the batch is found, a store that cannot be reached for now is tried again. Raises
    :class:`TimedOutError` if the batch has not ended within ``timeout`` seconds.
    """
    view: BatchView | None = None
    looks = follow(project, batch, interval=interval, timeout=timeout, outlast=_OUTLASTED)
    with closing(looks):
        for sight in looks:
            view = sight.view
            on_sight(sight)
    assert view is not None  # it ends with the look that has seen the end
    return view


@command(
    help={
        "batch": BATCH_HELP,
        "interval": f"seconds between two looks (default: {DEFAULT_INTERVAL:g})",
        "timeout": "give up after so many seconds, with exit code 6 (default: never)",
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
    """Block until a batch has ended.

    Its outcome is the exit code: 0 all pages done, 3 some failed, 7 cancelled;
    6 when --timeout is over. A store that cannot be reached for a while is
    waited for as well; one that is gone, or that cannot be reached at the first
    look, ends it with 5.

    Example: invoke nimbus.batch.wait --timeout=3600 && ./deploy
    """
    console = Console(json_only=json)
    every = check_seconds(interval, "--interval") or DEFAULT_INTERVAL
    most = check_seconds(timeout, "--timeout")
    project = load_project(project_root(c))
    with _Waiting() as bar:
        try:
            view = wait_for_batch(project, batch, interval=every, timeout=most, on_sight=bar.look)
        except KeyboardInterrupt:
            bar.close()
            raise detached(bar.view, "nimbus.batch.wait") from None
    if json:
        console.document(view.to_json())
    else:
        style, columns = console.style, console.columns
        console.say(*heading(view, style, columns, utc_now()), *count_lines(view, style, columns))
        show_next(console, next_steps_of(view))
    exit_with_outcome(view.status)
    return view


class _Waiting(ProgressBar):
    """A bar of pages that have ended, and a word where nobody seems to be at work."""

    def __init__(self) -> None:
        super().__init__()
        self.view: BatchView | None = None
        self._ended: int | None = None
        self._since = time.monotonic()
        self._told_idle = False
        self._told = self._trouble = ""

    def look(self, sight: Sight) -> None:
        """Show what is new."""
        if sight.told and sight.told != self._told:
            self.write(clean(sight.told))
        self._told = sight.told
        if sight.trouble != self._trouble:
            seen = "" if sight.view is None else f"last seen {duration(sight.age)} ago, "
            self.write(
                f"{clean(sight.trouble)}; {seen}trying again"
                if sight.trouble
                else "The store answers again"
            )
        self._trouble = sight.trouble
        if sight.view is not None and sight.view is not self.view:
            self.view = sight.view
            self._show(sight.view)

    def _show(self, view: BatchView) -> None:
        ended, now = view.tally.ended, time.monotonic()
        if self._ended is None:
            self.begin("Waiting", view.tally.total)
            self.advance(ended)
        elif ended != self._ended or len(view.in_flight) > len(view.stalled):
            self.advance(ended - self._ended)
            self._since = now
        elif not self._told_idle and now - self._since > IDLE_SECONDS:
            self.write(
                "Its upload seems to be cut off. Go on with:"
                if view.status == "uploading"
                else "Nobody seems to work on it. Start a worker with:"
            )
            room = terminal_size(sys.stderr)[0] - 3
            for line in command_lines(next_steps_of(view)[0].command, room):
                self.write(f"   {line}")
            self._told_idle = True
        self._ended = ended
