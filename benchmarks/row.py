"""A row of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One operation beside its floor: seconds of each, and megabytes at the operation's highest."""

    operation: str
    pages: int
    seconds: float
    megabytes: float
    floor: str
    floor_seconds: float
    target: float | None = None
    requests: int | None = None

    @property
    def ratio(self) -> float:
        """How many times the floor it takes."""
        return self.seconds / self.floor_seconds

    @property
    def holds(self) -> bool:
        """Whether the target is met; a row that has none has nothing to meet."""
        return self.target is None or self.ratio <= self.target

    def line(self) -> str:
        """The row as text, under :data:`HEADING`."""
        target = "" if self.target is None else f"{self.target:.2f}"
        return (
            f"{self.operation:<40} {self.pages:>7,} {self.seconds:>8.3f} {self.megabytes:>5.0f}"
            f" {'' if self.requests is None else self.requests:>8} {self.floor_seconds:>8.3f}"
            f" {self.ratio:>6.2f} {target:>6}  {self.floor}{'' if self.holds else '  MISSED'}"
        )


HEADING = (
    f"{'operation':<40} {'pages':>7} {'seconds':>8} {'MB':>5} {'requests':>8}"
    f" {'floor':>8} {'ratio':>6} {'target':>6}  the floor"
)
