"""Waiting: the exit code is the outcome, and who waits for nobody is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch import wait
from nimbus_tasks.batch.cancel import cancel_batch
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
