"""A batch in the middle of its work, and commands on it in a pseudo-terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nimbus_tasks.core.claims import Claim, Outcome, claim_pages, finish_pages
from nimbus_tasks.core.clock import now_iso, utc_now
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import a_map, invoke_command, upload, write_map
from tests.terminal.pseudo_terminal import PseudoTerminal

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]

PAGES, CLAIMED, DONE, FAILED = 40, 24, 9, 3


class Batch:
    """40 pages: 25 wait, 12 are at work, some have ended; and a hand that goes on with it."""

    def __init__(self, project: Project, store: Store) -> None:
        self.project, self.store = project, store
        folder = project.folder / "maps"
        for number in range(PAGES):
            name = f"page-{number:02d}"
            write_map(folder, f"{name}.json", a_map(f"dist/guides/spring/{name}.html"))
        self.batch_id = str(upload(project, store, folder).batch_id)
        with store.transaction() as tx:
            self._claims = claim_pages(tx, project.project_id, CLAIMED, 3600, utc_now())
        self.end(DONE)
        self.end(FAILED, error="429 Too Many Requests: slow down")

    def end(self, count: int, error: str | None = None) -> None:
        """So many of the pages at work end, well or with an error."""
        ended, self._claims = self._claims[:count], self._claims[count:]
        outcomes = [self._outcome(claim, error) for claim in ended]
        with self.store.transaction() as tx:
            finish_pages(tx, self.project.project_id, outcomes, utc_now())

    def end_all(self) -> None:
        """All the rest is done."""
        with self.store.transaction() as tx:
            more = claim_pages(tx, self.project.project_id, PAGES, 3600, utc_now())
        self._claims += more
        self.end(PAGES)

    @staticmethod
    def _outcome(claim: Claim, error: str | None) -> Outcome:
        now = now_iso()
        code = "rate_limited" if error else None
        return Outcome(claim, now, now, 2000, error=error, code=code)


@pytest.fixture
def batch(project: Project, store: Store) -> Batch:
    """A batch that is at work."""
    return Batch(project, store)


@pytest.fixture
def terminal(project: Project) -> Callable[..., PseudoTerminal]:
    """Runs ``invoke`` with these arguments in a terminal of that size."""

    def run(size: tuple[int, int], *arguments: str, **environment: str) -> PseudoTerminal:
        argv = invoke_command(project.root, *arguments)
        columns, rows = size
        return PseudoTerminal(argv, Path(project.root), columns, rows, **environment)

    return run
