"""``nimbus.batch.monitor``: one batch, live, until it ends.

How it is looked at is in this folder's ``watch``, how that is shown in ``screens``; here is how it
is called.
"""

from __future__ import annotations

from contextlib import closing

from invoke.context import Context

from nimbus_tasks.batch.monitor.screens import Screen, show_once
from nimbus_tasks.batch.monitor.watch import DEFAULT_INTERVAL, detached, follow, watch_batch
from nimbus_tasks.command import (
    BATCH_HELP,
    EXIT_STATUS_HELP,
    check_seconds,
    command,
    exit_with_outcome,
    project_root,
    setting,
)
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.project import load_project
from nimbus_tasks.ui.console import Console

__all__ = ["DEFAULT_INTERVAL", "follow", "monitor", "watch_batch"]


@command(
    help={
        "batch": BATCH_HELP,
        "interval": f"seconds between two looks (default: {DEFAULT_INTERVAL:g})",
        "once": "show one frame and end",
        "timeout": "give up after so many seconds, with exit code 6 (default: never)",
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
    """Watch a batch live until it ends.

    A block that is redrawn on a terminal; a line at each change in a log or a
    pipe. Failures are named as they happen. Ctrl-C ends the watching, not the
    batch. A store that is lost is tried again for as long as you let it (with
    --timeout: until then).

    Example: invoke nimbus.batch.monitor --batch=latest --interval=2
    """
    console = Console(json_only=json)
    every = setting(c, "monitor", "interval", interval)
    most = check_seconds(timeout, "--timeout")
    project = load_project(project_root(c))
    last: BatchView | None = None
    if once:
        with project.open_store(tell=console.note) as store:
            last = next(watch_batch(project, store, batch))
        show_once(console, last, json=json)
    else:
        looks = follow(project, batch, interval=every or DEFAULT_INTERVAL, timeout=most)
        with closing(looks), Screen.for_(console, json=json) as screen:
            try:
                for sight in looks:
                    last = sight.view
                    screen.show(sight)
            except KeyboardInterrupt:
                raise detached(last, "nimbus.batch.monitor") from None
    if last is not None and exit_status:
        exit_with_outcome(last.status)
    return last
