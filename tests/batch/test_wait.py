"""Waiting: the exit code is the outcome, and who waits for nobody is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch import wait
from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.monitor.watch import Sight
from nimbus_tasks.core import batches
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.errors import StoreUnreachableError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.batch.test_monitor import between, nothing, works
from tests.factories import failing, upload, work

__all__ = ["between"]


@pytest.fixture(autouse=True)
def _here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)


def exit_code(**options: object) -> int:
    try:
        wait.wait(Context(), **options)
    except Exit as ended:
        return ended.code
    return 0


def test_the_outcome_is_the_exit_code(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store)
    assert exit_code() == 0
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    assert exit_code() == 3
    upload(project, store, maps)
    cancel_batch(project, store, "latest")
    assert exit_code() == 7


def test_the_document_is_that_of_a_status_whatever_the_outcome(
    project: Project, store: Store, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(project, store, maps)
    work(project, store, failing("dist/page-001.html"))
    assert exit_code(json=True) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["finished"]) == ("partially_completed", True)


def test_who_waits_while_nobody_works_is_told_once(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload(project, store, maps)
    between(nothing, nothing, nothing, works(project))
    monkeypatch.setattr(wait, "IDLE_SECONDS", -1)
    assert exit_code() == 0
    assert capsys.readouterr().err.count("invoke nimbus.worker") == 1


@pytest.mark.parametrize("first_looks", [0, 1])
def test_what_passes_is_outlasted(
    project: Project,
    store: Store,
    maps: Path,
    between: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first_looks: int,
) -> None:
    upload(project, store, maps)
    between(*[nothing] * first_looks, nothing, nothing, works(project))
    outcomes: Iterator[bool] = iter([True] * first_looks + [False, False])
    look = batches.look

    def looks(*arguments: Any, **more: Any) -> BatchView:
        if not next(outcomes, True):
            raise StoreUnreachableError("away")
        return look(*arguments, **more)

    monkeypatch.setattr(batches, "look", looks)
    assert exit_code() == 0
    lost, *found = capsys.readouterr().err.splitlines()
    seen = r"last seen \S+ m?s ago, " if first_looks else ""
    assert re.fullmatch(f"away; {seen}trying again", lost)
    assert found == ["The store answers again"]


def test_the_function_tells_what_it_sees_and_returns_the_end(
    project: Project, store: Store, maps: Path, between: Callable[..., None]
) -> None:
    upload(project, store, maps)
    between(works(project, "dist/page-001.html"))
    sights: list[Sight] = []
    view = wait.wait_for_batch(project, on_sight=sights.append)
    assert view.status == "partially_completed"
    statuses = groupby(sight.view.status for sight in sights if sight.view)
    assert [status for status, _ in statuses] == ["queued", view.status]


def test_a_store_that_is_gone_ends_the_waiting(
    project: Project, store: Store, maps: Path, between: Callable[..., None]
) -> None:
    upload(project, store, maps)
    between(project.store_path.unlink)
    assert exit_code() == 5
