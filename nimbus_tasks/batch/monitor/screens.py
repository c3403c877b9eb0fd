"""How a batch that is watched is shown: a live block on a terminal, lines in a log or a pipe, and
with ``--json`` an object a line."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from nimbus_tasks.batch.monitor.watch import Sight
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.lifecycle import UNKNOWN_CODE
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.ui.batch_view import batch_lines, failure_line
from nimbus_tasks.ui.console import Console, can_redraw
from nimbus_tasks.ui.figures import duration, pages, percent, rate, time_left
from nimbus_tasks.ui.live import LiveBlock
from nimbus_tasks.ui.live_view import live_lines
from nimbus_tasks.ui.next_steps import next_lines, show_next
from nimbus_tasks.ui.text import clean, clip

#: Failures of one look that are named; of a burst of hundreds nobody reads more.
_NAMED = 10


def show_once(console: Console, view: BatchView, *, json: bool) -> None:
    """One frame, however long."""
    if json:
        console.documents([view.to_json()])
    else:
        console.say(*batch_lines(view, console.style, console.columns, utc_now()))
        show_next(console, next_steps_of(view))


class Screen:
    """Where sights of a batch are shown; each kind below shows them its own way."""

    @staticmethod
    def for_(console: Console, *, json: bool) -> Screen:
        """The kind that suits what stdout is."""
        if json:
            return _JsonLines(console)
        return _Dashboard(console) if can_redraw(sys.stdout) else _Lines(console)

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, sight: Sight) -> None:
        """Show what has changed, if anything has."""
        raise NotImplementedError

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        return


class _NewFailures:
    """Tells which failures of a look are new: each is named once an attempt."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._count = 0

    def of(self, view: BatchView) -> tuple[list[PageInfo], int]:
        """Those to name, oldest first, and how many more there are."""
        new = []
        for page in reversed(view.failures):
            attempt = f"{page.page_id}:{page.status.get('attempts')}"
            if attempt not in self._seen:
                self._seen.add(attempt)
                new.append(page)
        # A look keeps the latest failures only: the count says how many there were besides.
        count, before = view.tally.states["failed"], self._count
        self._count = count
        return new[-_NAMED:], max(len(new), count - before) - len(new[-_NAMED:])


class _Dashboard(Screen):
    """A block that is redrawn in the size that the terminal has, and above it what stays."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._block = LiveBlock(sys.stdout)
        self._failures = _NewFailures()
        self._shown: BatchView | None = None
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            # Told to end, it ends as after Ctrl-C, so that the cursor comes back.
            self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def show(self, sight: Sight) -> None:
        view, style = sight.view, self.console.style
        columns, height = self._block.size
        if view is None:
            waits = sight.told or ("Looking for the batch …" if sight.is_stale else "")
            self._draw([style.dim(f"   {clip(clean(waits), columns - 3)}")] if waits else [])
            return
        stays: list[str] = []
        if view is not self._shown:
            self._shown = view
            stays = self._new_failures(view, columns)
        if view.is_finished:
            lines = [*batch_lines(view, style, columns, utc_now()), *self._next(view, columns)]
            self._draw([], [*stays, *lines])
            return
        # What was seen long ago must not seem to go on.
        now = utc_now() - timedelta(seconds=sight.age if sight.is_stale else 0.0)
        footer = self._footer(sight, columns)
        self._draw(live_lines(view, style, columns, height, now, footer), stays)

    def _draw(self, lines: list[str], stays: list[str] | None = None) -> None:
        plain = self.console.style.plain
        self._block.show([plain(line) for line in lines], [plain(line) for line in stays or []])

    def _new_failures(self, view: BatchView, columns: int) -> list[str]:
        style = self.console.style
        named, more = self._failures.of(view)
        sign = style.sign("failed")
        lines = [f"{sign} {failure_line(page, style, columns - 3)}" for page in named]
        return lines + ([f"{sign} and {more:,} more failed"] if more else [])

    def _footer(self, sight: Sight, columns: int) -> list[str]:
        style = self.console.style
        if sight.is_stale:
            old = f"{style.sign('stalled')} this is {duration(sight.age)} old: "
            why = clean(sight.trouble or sight.told or "the store does not answer")
            hint = "trying again · Ctrl-C ends the watching, not the batch"
            lines = [style.state("stalled", clip(old + why, columns - 1))]
            return [*lines, style.dim(f"   {clip(hint, columns - 4)}")]
        hint = clean(sight.told) or "Ctrl-C ends the watching, not the batch"
        return [style.dim(f"   {clip(hint, columns - 4)}")]

    def _next(self, view: BatchView, columns: int) -> list[str]:
        return next_lines(next_steps_of(view), self.console.style, columns)

    def __exit__(self, *exc: object) -> None:
        self._block.__exit__(*exc)
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)


class _Lines(Screen):
    """A line when something has changed, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last: Any = None
        self._failures = _NewFailures()
        self._trouble = self._told = ""

    def show(self, sight: Sight) -> None:
        if sight.told and sight.told != self._told:
            self.console.note(clean(sight.told))
        self._told = sight.told
        if sight.trouble != self._trouble and sight.view is not None:
            self._say_trouble(sight)
        self._trouble = sight.trouble
        if sight.view is not None:
            self._say_change(sight.view)

    def _say_trouble(self, sight: Sight) -> None:
        if sight.trouble:
            old = f"what is above is {duration(sight.age)} old, trying again"
            self._say(f"the store does not answer: {clean(sight.trouble)}; {old}")
        elif self._trouble:
            self._say("the store answers again")

    def _say_change(self, view: BatchView) -> None:
        counts = view.tally.counts
        seen = (view.status, counts, len(view.stalled))
        if seen == self._last:
            return
        self._last = seen
        named, more = self._failures.of(view)
        for page in named:
            error = clean(page.status.get("error") or page.status.get("code") or UNKNOWN_CODE)
            self._say(f"failed: {clean(page.name)}: {error}")
        if more:
            self._say(f"failed: and {more:,} more")
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
        self._say(f"{view.status.replace('_', ' ')}: {text}")
        if view.is_finished:
            for step in next_steps_of(view):
                self._say(f"next: {step.command}")

    def _say(self, text: str) -> None:
        self.console.say(f"{_clock()}  {text}")


class _JsonLines(Screen):
    """An object a line when something has changed."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last: Any = None
        self._trouble = ""

    def show(self, sight: Sight) -> None:
        if sight.trouble and not self._trouble:
            self.console.note(f"the store does not answer: {clean(sight.trouble)}; trying again")
        self._trouble = sight.trouble
        if sight.view is None:
            return
        document = sight.view.to_json()
        seen = (document["status"], document["counts"], document["stalled"])
        if seen != self._last:
            self._last = seen
            self.console.documents([document])


def _clock() -> str:
    return time.strftime("%H:%M:%S")
