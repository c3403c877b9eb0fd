"""How the core tells how far it is: a small object that knows no terminal."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the core, shown by :mod:`nimbus_tasks.ui.progress`."""

    def begin(self, what: str, total: int | None) -> None:
        """A new stretch of work of ``total`` steps (``None``: unknown) begins."""

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, steps: int = 1) -> None:
        """Ignored."""
