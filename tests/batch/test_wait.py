"""Waiting: the exit code is the outcome, and who waits for nobody is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch import wait
from nimbus_tasks.batch.cancel import cancel_batch
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


def test_what_passes_is_outlasted_and_what_does_not_ends_it(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(project, store, maps)
    look, errors = (
        batches.look,
        iter([StoreUnreachableError("away"), StoreUnreachableError("away")]),
    )

    def looks(*arguments: Any, **more: Any) -> BatchView:
        view = look(*arguments, **more)
        if not view.is_finished and (error := next(errors, None)) is not None:
            raise error
        if not view.is_finished:
            work(project, store)
        return view

    monkeypatch.setattr(batches, "look", looks)
    told: list[str] = []
    view = wait.wait_for_batch(project, store, interval=0.01, tell=told.append)
    assert view.status == "completed"
    assert told == ["away; trying again"] * 2


def test_a_store_that_is_gone_ends_the_waiting(
    project: Project, store: Store, maps: Path, between: Callable[..., None]
) -> None:
    upload(project, store, maps)
    between(project.store_path.unlink)
    assert exit_code() == 5
