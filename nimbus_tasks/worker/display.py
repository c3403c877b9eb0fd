"""What is seen of a worker: a bar on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

import sys
import time

from nimbus_tasks.core.claims import Outcome
from nimbus_tasks.ui.console import Console, terminal_size
from nimbus_tasks.ui.figures import duration, pages, rate
from nimbus_tasks.ui.progress import ProgressBar
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, clip
from nimbus_tasks.worker.options import Worked


class WorkerDisplay(ProgressBar):
    """A bar on a terminal, now and then a line elsewhere; failures as they happen on both."""

    LINE_SECONDS = 10.0

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._total = self._ended = self._failed = 0
        self._last_line = time.monotonic()
        self._reason = ""
        self._shows_bar = sys.stderr.isatty()

    def page_ended(self, outcome: Outcome) -> None:
        """Show it, and its error if it has one."""
        if outcome.error is not None:
            again = " (will be tried again)" if outcome.try_again else ""
            name = outcome.claim.status.path or outcome.claim.page_id
            style = self._console.error_style
            columns = terminal_size(sys.stderr)[0] - 1
            where = clip(clean(name), max(20, columns // 2), keep_end=True)
            what = clip(f"{where}: {clean(outcome.error)}", columns - 3 - len(again))
            self.write(style.plain(f"{style.sign('failed')} {what}{again}"))
        if not outcome.try_again:
            self._ended += 1
            self._failed += outcome.error is not None
            self.advance()
        self.note(f"{self._failed} failed" if self._failed else "")
        self._line()

    def still_to_do(self, count: int) -> None:
        """Set the length of the bar."""
        if self._total == 0:
            self.begin("Working", self._ended + count)
            self.advance(self._ended)
        self._total = self._ended + count
        self.set_total(self._total)

    def waits(self, reason: str) -> None:
        """Say once why."""
        if reason != self._reason:
            self.write(self._console.error_style.plain(f"Waiting for {reason} …"))
            self._reason = reason

    def stops(self, in_flight: int) -> None:
        """Say what happens and what a second Ctrl-C does."""
        if in_flight:
            self.write(
                f"Stopping: {pages(in_flight)} in flight may finish; Ctrl-C again gives them back."
            )

    def _line(self) -> None:
        if self._shows_bar or time.monotonic() - self._last_line < self.LINE_SECONDS:
            return
        self._last_line = time.monotonic()
        self.write(f"{self._ended:,} of {self._total:,} pages, {self._failed:,} failed")


def summary_lines(worked: Worked, style: Style) -> list[str]:
    """What it has done, for a person."""
    ended = worked.done + worked.failed
    if not ended and not worked.released:
        return [f"{style.sign('ok')} Nothing to do: no page is queued"]
    speed = rate(ended / worked.seconds if worked.seconds else None)
    took = f"in {duration(worked.seconds)}" + (f" ({speed})" if ended and speed else "")
    sign = "ok" if not worked.failed else "partially_completed" if worked.done else "failed"
    lines = [f"{style.sign(sign)} {pages(worked.done)} done, {worked.failed:,} failed, {took}"]
    for count, what in (
        (worked.taken_up, "taken up again from a worker that had gone"),
        (worked.tried_again, "failed attempts tried again"),
        (worked.refused, "outcomes not counted: another worker had taken the page up"),
    ):
        if count:
            lines.append(f"   {count:,} {what}")
    finished = worked.batches.items()
    return lines + [f"   {batch_id}: {style.state(status)}" for batch_id, status in finished]
