"""Retry and cancel: what the dashboard leaves in the store is what the tasks leave."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.dashboard.served import Served, served
from tests.factories import upload

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|\b\d{20}\b")


def records(project: Project) -> dict[str, tuple[Any, Any]]:
    """Everything in the store, but for when it was written."""
    with project.open_store() as store:
        found = store.get_many([info.key for info in store.scan("")])
    return {
        _TIME.sub("TIME", entry.key): (
            _TIME.sub("TIME", entry.value),
            _TIME.sub("TIME", json.dumps(entry.metadata)),
        )
        for entry in found.values()
    }


def twin_of(project: Project) -> Project:
    """The same project once more, with a store of its own."""
    root = project.root / "twin"
    shutil.copytree(project.folder, root / ".nimbus")
    return replace(project, root=root)


RETRIES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "all": ({}, {}, 3),
    "no code": ({"code": None}, {}, 3),
    "one code": ({"code": "broken"}, {"code": "broken"}, 2),
    "another code": ({"code": "none"}, {"code": "none"}, 0),
}


@pytest.mark.parametrize("name", RETRIES)
def test_a_retry_is_the_tasks(project: Project, batch: str, dashboard: Served, name: str) -> None:
    body, options, count = RETRIES[name]
    twin = twin_of(project)
    with twin.open_store() as store:
        expected = retry_pages(twin, store, batch, **options)
    answer = dashboard.act(f"batches/{batch}/retry", body)
    assert answer.json() == expected.to_json()
    assert len(answer.json()["requeued"]) == count
    assert records(project) == records(twin)


@pytest.mark.parametrize("reason", [None, "prices change on Monday"])
def test_a_cancel_is_the_tasks(
    project: Project, store: Store, maps: Path, dashboard: Served, reason: str | None
) -> None:
    batch = str(upload(project, store, maps).batch_id)
    twin = twin_of(project)
    with twin.open_store() as other:
        expected = cancel_batch(twin, other, batch, reason=reason)
    answer = dashboard.act(f"batches/{batch}/cancel", {"reason": reason or ""})
    assert answer.json() == expected.to_json()
    assert answer.json()["cancelled"] == 10
    assert records(project) == records(twin)
    assert dashboard.look(batch)["reason"] == (reason or "")


def test_whoever_watches_sees_it_without_waiting_for_the_next_look(
    project: Project, batch: str
) -> None:
    with served(project, interval=3600) as dashboard, dashboard.events(batch) as events:
        assert next(events)[1]["document"]["status"] == "partially_completed"
        dashboard.act(f"batches/{batch}/retry")
        look = next(data["document"] for name, data in events if name == "look")
        assert look["status"] == "retrying"


@pytest.mark.parametrize("action", ["retry", "cancel"])
@pytest.mark.parametrize(
    "name", [lambda batch: "latest", lambda batch: batch[-6:], lambda batch: batch + "x"]
)
def test_an_action_means_the_batch_of_exactly_that_id(
    batch: str, dashboard: Served, action: str, name: Callable[[str], str]
) -> None:
    answer = dashboard.act(f"batches/{name(batch)}/{action}")
    assert answer.status_code == 404
    assert dashboard.look(batch)["status"] == "partially_completed"


@pytest.mark.parametrize("body", [{"code": 5}, {"code": ["broken"]}, {"error": "broken"}])
def test_a_retry_that_is_asked_for_in_other_words_retries_nothing(
    batch: str, dashboard: Served, body: dict[str, Any]
) -> None:
    answer = dashboard.act(f"batches/{batch}/retry", body)
    assert answer.status_code == 400
    assert "'code'" in f"{answer.json()['error']} {answer.json()['advice']}"
    assert dashboard.look(batch)["counts"]["failed"] == 3
