"""Outcomes that were refused because of a record that may be an old one.

Where several workers share the pages and reads lag, two may have a page at once. A worker that has
written its claim over the outcome of the other may still read that outcome. If it let go of the
page, nobody would hold it: the other is done with it, and its record says that it is at work.
"""

from __future__ import annotations

from collections.abc import Iterable

from nimbus_tasks.core.claims import Outcome


class Contested:
    """Refused outcomes, each to be tried once more after ``lag_seconds``, when reads show the
    record that stands. Where nothing lags there are none."""

    def __init__(self, lag_seconds: float) -> None:
        self._lag = lag_seconds
        self._waiting: list[tuple[float, Outcome]] = []
        self._tried: set[str | None] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def due(self, clock: float) -> list[Outcome]:
        """Those whose time has come by ``clock`` (seconds); they wait no more."""
        due = [outcome for at, outcome in self._waiting if at <= clock]
        self._waiting = [(at, outcome) for at, outcome in self._waiting if at > clock]
        return due

    def without(self, refused: Iterable[Outcome], clock: float) -> list[Outcome]:
        """Those of ``refused`` that are so for good; the others are kept, to be tried once more."""
        for_good = []
        for outcome in refused:
            claim = outcome.claim.status.claim
            if not self._lag or claim in self._tried:
                for_good.append(outcome)
            else:
                self._tried.add(claim)
                self._waiting.append((clock + self._lag, outcome))
        return for_good
