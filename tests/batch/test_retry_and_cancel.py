"""Retry and cancel: what goes back to the queue, what does not start, and that all adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.claims import claim_pages, release_claims
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import page_id_for, queue_prefix
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import failing, upload, work

FAILED = ("dist/page-002.html", "dist/page-005.html")


@pytest.fixture
def batch(project: Project, store: Store, maps: Path) -> str:
    """A batch of ten pages, two of which have failed."""
    batch_id = upload(project, store, maps).batch_id
    work(project, store, failing(*FAILED))
    assert batch_id is not None
    return batch_id


def ids(project: Project, *paths: str) -> list[str]:
    return [page_id_for(project.project_id, path) for path in paths]


def queue(project: Project, store: Store) -> list[Any]:
    keys = [info.key for info in store.scan(queue_prefix(project.project_id))]
    return [json.loads(entry.value) for entry in store.get_many(keys).values()]


def counts(project: Project, store: Store, batch: str | None = None) -> dict[str, int]:
    counted = view_batch(project, store, batch).tally.counts
    assert sum(counted.values()) == view_batch(project, store, batch).tally.total
    return {state: count for state, count in counted.items() if count}


def test_failed_pages_and_no_others_are_queued_ahead_of_new_ones(
    project: Project, store: Store, batch: str
) -> None:
    retried = retry_pages(project, store)
    assert retried.requeued == ids(project, *FAILED)
    assert retried.status == "retrying"
    assert [(item["page_id"], item["priority"], item["attempts"]) for item in queue(project, store)]
    assert {(i["priority"], i["attempts"], i["batch_id"]) for i in queue(project, store)} == {
        (8, 1, batch)
    }
    assert counts(project, store) == {"queued": 2, "done": 8}


def test_a_second_retry_queues_nothing_twice(project: Project, store: Store, batch: str) -> None:
    retry_pages(project, store)
    assert retry_pages(project, store).requeued == []
    assert len(queue(project, store)) == 2


def test_after_a_retry_a_page_has_one_attempt_more(
    project: Project, store: Store, batch: str
) -> None:
    retry_pages(project, store)
    work(project, store)
    view = view_batch(project, store)
    assert (view.status, view.tally.attempts) == ("completed", 12)


@pytest.mark.parametrize("by", ["id", "path"])
def test_one_page_is_chosen_by_its_id_or_its_path(
    project: Project, store: Store, batch: str, by: str
) -> None:
    [page_id] = ids(project, FAILED[0])
    page = page_id if by == "id" else FAILED[0]
    assert retry_pages(project, store, page=page).requeued == [page_id]


def test_a_page_that_has_not_failed_is_not_queued(
    project: Project, store: Store, batch: str
) -> None:
    assert retry_pages(project, store, page="dist/page-000.html").requeued == []


@pytest.mark.parametrize("page", ["page_ffffffffffff", "no/such.html", "../../etc", "\udcff"])
def test_a_page_that_is_not_there_is_not_found(
    project: Project, store: Store, batch: str, page: str
) -> None:
    with pytest.raises(NotFoundError):
        retry_pages(project, store, page=page)


def test_pages_are_chosen_by_the_code_of_their_error(
    project: Project, store: Store, batch: str
) -> None:
    assert retry_pages(project, store, code="other", dry_run=True).requeued == []
    assert len(retry_pages(project, store, code="broken").requeued) == 2


def test_a_dry_run_changes_nothing(project: Project, store: Store, batch: str) -> None:
    retried = retry_pages(project, store, dry_run=True)
    assert len(retried.requeued) == 2
    assert retried.status == "partially_completed"
    assert counts(project, store) == {"done": 8, "failed": 2}


def test_no_failed_pages_is_no_fault(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store)
    retried = retry_pages(project, store)
    assert (retried.requeued, retried.status) == ([], "completed")


def test_a_batch_that_is_not_there_is_not_found(project: Project, store: Store, batch: str) -> None:
    for act in (retry_pages, cancel_batch):
        with pytest.raises(NotFoundError):
            act(project, store, "batch_20200101_000000")


def test_pages_that_a_later_batch_has_are_to_be_retried_there(
    project: Project, store: Store, batch: str, maps: Path
) -> None:
    upload(project, store, maps)
    retried = retry_pages(project, store, batch)
    assert (retried.requeued, retried.superseded) == ([], 2)


def test_waiting_pages_are_cancelled_and_those_in_flight_are_not(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    with store.transaction() as tx:
        claims = claim_pages(tx, project.project_id, 3, 60, utc_now())
    cancelled = cancel_batch(project, store, "latest", reason="wrong folder")
    assert (cancelled.cancelled, cancelled.in_flight, cancelled.finished_before) == (7, 3, 0)
    assert (cancelled.batch_id, cancelled.status) == (batch, "cancelling")
    assert counts(project, store) == {"processing": 3, "cancelled": 7}
    assert queue(project, store) == []
    again = cancel_batch(project, store, "latest")
    assert (again.cancelled, again.in_flight, again.status) == (0, 3, "cancelling")
    with store.transaction() as tx:
        release_claims(tx, project.project_id, claims, utc_now())
    assert counts(project, store) == {"cancelled": 10}
    view = view_batch(project, store)
    assert (view.status, view.head.reason) == ("cancelled", "wrong folder")


def test_a_finished_batch_is_not_cancelled(project: Project, store: Store, batch: str) -> None:
    cancelled = cancel_batch(project, store, batch)
    assert (cancelled.was_finished, cancelled.status) == (True, "partially_completed")
    assert (cancelled.cancelled, cancelled.finished_before) == (0, 10)
    assert view_batch(project, store).status == "partially_completed"


def test_a_retry_after_a_cancel_brings_back_cancelled_pages_only_if_asked(
    project: Project, store: Store, batch: str
) -> None:
    retry_pages(project, store)
    cancel_batch(project, store, batch)
    assert counts(project, store) == {"done": 8, "cancelled": 2}
    assert retry_pages(project, store).requeued == []
    assert view_batch(project, store).status == "cancelled"
    assert len(retry_pages(project, store, include_cancelled=True).requeued) == 2
    work(project, store)
    assert view_batch(project, store).status == "completed"


def test_a_cancelled_batch_with_a_page_retried_stays_cancelled_for_the_rest(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    work(project, store, failing(*FAILED), batch_id=batch)
    retry_pages(project, store, page=FAILED[0])
    cancel_batch(project, store, batch)
    assert counts(project, store) == {"done": 8, "failed": 1, "cancelled": 1}
    retry_pages(project, store)
    work(project, store)
    assert counts(project, store) == {"done": 9, "cancelled": 1}
    assert view_batch(project, store).status == "cancelled"
