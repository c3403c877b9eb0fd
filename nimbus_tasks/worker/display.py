"""What is seen of a worker: a bar on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from nimbus_tasks.core.advice import NextStep, next_steps
from nimbus_tasks.core.claims import Outcome
from nimbus_tasks.core.failures import FailureGroups
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.ui.batch_view import failure_line
from nimbus_tasks.ui.console import Console, can_redraw, terminal_size
from nimbus_tasks.ui.figures import duration, pages, rate
from nimbus_tasks.ui.progress import ProgressBar
from nimbus_tasks.ui.style import Style
from nimbus_tasks.worker.options import Worked


class WorkerDisplay(ProgressBar):
    """A bar on a terminal, now and then a line elsewhere; failures as they happen on both, but of a
    burst of them, and of one kind, only some. ``clock`` gives seconds."""

    LINE_SECONDS = 10.0
    #: Failures that are named within a second; of hundreds nobody reads more.
    NAMED_A_SECOND = 10
    #: Failures of one kind that are named; the others are counted.
    NAMED_OF_A_KIND = 5

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console = console
        self._clock = clock
        self._second, self._named, self._unnamed = 0.0, 0, 0
        self._groups = FailureGroups()
        self._attempts = FailureGroups()  # with those that will be tried again
        self._total = self._ended = self._failed = 0
        self._last_line = clock()
        self._reason = ""
        self._shows_bar = can_redraw(sys.stderr)  # asked once: it is a call of the system

    def pages_ended(self, outcomes: Sequence[Outcome]) -> None:
        """Show them, and the errors of those that have one."""
        if not outcomes:
            return
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        for outcome in failed:
            self._failed_page(outcome)
        tried_again = sum(outcome.try_again for outcome in failed)
        self._ended += len(outcomes) - tried_again
        self._failed += len(failed) - tried_again
        self.advance(len(outcomes) - tried_again)
        self.note(f"{self._failed} failed" if self._failed else "")
        self._line()

    def _failed_page(self, outcome: Outcome) -> None:
        claim = outcome.claim
        status = {
            "status": "failed",
            "path": claim.status.path,
            "code": outcome.code,
            "error": outcome.error,
        }
        page = PageInfo(claim.page_id, status)
        if not outcome.try_again:
            self._groups.add(page)
        is_known = self._attempts.add(page) > self.NAMED_OF_A_KIND
        if not is_known and self._clock() - self._second >= 1:
            self._say_unnamed()
            self._second, self._named = self._clock(), 0
        if is_known or self._named >= self.NAMED_A_SECOND:
            self._unnamed += 1
            return
        self._named += 1
        again = " (will be tried again)" if outcome.try_again else ""
        style = self._console.error_style
        line = failure_line(page, style, terminal_size(sys.stderr)[0] - 4 - len(again))
        self.write(style.plain(f"{style.sign('failed')} {line}{again}"))

    def _say_unnamed(self) -> None:
        if self._unnamed:
            sign = self._console.error_style.sign("failed")
            self.write(f"{sign} and {self._unnamed:,} more failed")
            self._unnamed = 0

    def next_steps(
        self, worked: Worked, engine: str = "python", options: Sequence[str] = ()
    ) -> list[NextStep]:
        """What to do with the batch that has ended; with several, nothing that suits all.

        ``options`` are what another worker is to be given."""
        if len(worked.batches) != 1:
            return []
        [(batch_id, status)] = worked.batches.items()
        failed = max(worked.failed, status in ("partially_completed", "failed"))
        counts = {"done": worked.done, "failed": failed}
        groups = self._groups.biggest(20)
        return next_steps(
            batch_id, status, counts, groups=groups, engine=engine, worker_options=options
        )

    def close(self) -> None:
        """Take the bar away; what was not named is counted."""
        self._say_unnamed()
        super().close()

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
        if self._shows_bar or self._clock() - self._last_line < self.LINE_SECONDS:
            return
        self._last_line = self._clock()
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
