"""A progress bar on stderr, by tqdm; where nothing can be drawn over it is silent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nimbus_tasks.ui.console import can_redraw

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Self


class ProgressBar:
    """Pages done, rate and time left. Lines written through :meth:`write` stay above the bar."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def begin(self, what: str, total: int | None) -> None:
        """A new stretch of work begins; the bar of the last one goes."""
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(
            total=total,
            desc=what,
            unit="page",
            file=sys.stderr,
            disable=not can_redraw(sys.stderr),
            dynamic_ncols=True,
            leave=False,
            mininterval=0.2,
        )

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""
        if self._bar is not None:
            self._bar.update(steps)

    def set_total(self, total: int) -> None:
        """The work has grown or shrunk."""
        if self._bar is not None and self._bar.total != total:
            self._bar.total = total
            self._bar.refresh()

    def note(self, text: str) -> None:
        """Show clean text behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def write(self, line: str) -> None:
        """A line that stays, above the bar, on stderr."""
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
