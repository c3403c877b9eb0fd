"""Cancel: counts that add up, records that say so, and batches cancelled at every moment, also
those that another program wrote, or that were cut off while they were sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.list import list_batches
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.claims import claim_pages, finish_pages
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import BatchCancelledError, NotFoundError, UsageError
from nimbus_tasks.core.keys import batch_key, page_id_for, queue_prefix, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload import sending
from nimbus_tasks.worker.attempts import Attempt
from tests.factories import failing, no_changes, upload, upload_cut_off, work


def test_a_page_that_says_it_is_uploaded_is_cancelled_like_one_that_is_queued(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    key = status_key(project.project_id, page_id_for(project.project_id, "dist/page-001.html"))
    store.put(key, json.dumps({"status": "uploaded", "batch_id": batch, "updated": ""}))
    cancel_batch(project, store, "latest")
    view = view_batch(project, store)
    assert (view.status, view.tally.counts["cancelled"]) == ("cancelled", 10)


def test_a_page_that_has_ended_though_the_listing_does_not_know_keeps_its_result(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    key = status_key(project.project_id, page_id_for(project.project_id, "dist/page-001.html"))
    before = store.head(key)
    work(project, store)
    done = store.get(key)
    assert before is not None
    assert done is not None
    store.put(key, done.value, before.metadata)
    cancelled = cancel_batch(project, store, "latest")
    assert cancelled.cancelled == 0
    after = store.get(key)
    assert after is not None
    assert after.value == done.value


def test_what_a_cancel_counts_is_what_the_batch_has_afterwards(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps, after=1)
    cancelled = cancel_batch(project, store, "latest")
    view = view_batch(project, store)
    assert cancelled.cancelled == view.tally.counts["cancelled"]
    assert cancelled.cancelled + cancelled.in_flight + cancelled.finished_before == view.tally.total


def test_a_cancel_of_a_batch_of_which_nothing_was_sent_ends_it(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps)
    cancel_batch(project, store, "latest")
    assert view_batch(project, store).status == "cancelled"
    assert work(project, store).done == 0


def test_a_cancel_leaves_other_batches_alone(project: Project, store: Store, maps: Path) -> None:
    from tests.factories import a_map, write_map

    first = upload(project, store, maps).batch_id
    write_map(maps / "later", "new.json", a_map("dist/new.html"))
    upload(project, store, maps / "later")
    cancel_batch(project, store, "latest")
    assert view_batch(project, store, first).tally.counts["queued"] == 10
    assert work(project, store).done == 10


def queued(project: Project, store: Store) -> int:
    return len(list(store.scan(queue_prefix(project.project_id))))


def test_a_cancelled_batch_says_so_in_its_record_and_in_every_look(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    cancelled = cancel_batch(project, store, batch, reason="wrong folder")
    assert cancelled.to_json() == {
        "batch_id": batch,
        "status": "cancelled",
        "cancelled": 10,
        "in_flight": 0,
        "finished_before": 0,
    }
    entry = store.get(batch_key(project.project_id, batch))
    assert entry is not None
    record = json.loads(entry.value)
    assert (record["status"], record["reason"]) == ("cancelled", "wrong folder")
    assert {page["status"] for page in record["pages"].values()} == {"cancelled"}
    [row] = list_batches(project, store)
    assert (row.status, row.page_count, row.cancelled) == ("cancelled", 10, 10)
    assert verify_batch(project, store).findings == []


def test_nothing_of_a_cancelled_batch_is_worked_on(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    cancel_batch(project, store, "latest")
    worked = work(project, store)
    assert (worked.done, worked.failed) == (0, 0)
    assert queued(project, store) == 0


def test_a_page_in_flight_keeps_its_result(project: Project, store: Store, maps: Path) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    with store.transaction() as tx:
        claims = claim_pages(tx, project.project_id, 2, 60, utc_now())
    cancel_batch(project, store, batch)
    outcomes = [Attempt(claim).run(no_changes, 1) for claim in claims]
    with store.transaction() as tx:
        assert finish_pages(tx, project.project_id, outcomes, utc_now())[1] == []
    view = view_batch(project, store)
    assert view.status == "cancelled"
    assert (view.tally.counts["done"], view.tally.counts["cancelled"]) == (2, 8)


def test_a_page_in_flight_that_fails_has_failed_and_is_not_tried_again(
    project: Project, store: Store, maps: Path
) -> None:
    """However many attempts the worker allows: a cancelled batch comes to its end."""
    upload(project, store, maps)

    def process(page: Any, progress: Any) -> dict[str, Any]:
        with project.open_store() as another:
            cancel_batch(project, another, "latest")
        raise ValueError("no")

    worked = work(project, store, process, concurrency=1, max_attempts=5)
    assert (worked.failed, worked.tried_again) == (1, 0)
    view = view_batch(project, store)
    assert (view.status, view.tally.attempts) == ("cancelled", 1)
    assert (view.tally.counts["failed"], view.tally.counts["cancelled"]) == (1, 9)


def test_a_worker_writes_the_end_of_a_batch_down_that_was_cancelled_meanwhile(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None

    def process(page: Any, progress: Any) -> dict[str, Any]:
        with project.open_store() as another:
            cancel_batch(project, another, batch)
        return {}

    work(project, store, process, concurrency=3)
    entry = store.get(batch_key(project.project_id, batch))
    assert entry is not None
    assert json.loads(entry.value)["status"] == "cancelled"
    assert verify_batch(project, store).findings == []


def test_a_second_cancel_changes_nothing_and_keeps_the_first_reason(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    cancel_batch(project, store, "latest", reason="first")
    again = cancel_batch(project, store, "latest", reason="second")
    assert (again.cancelled, again.finished_before, again.was_finished) == (0, 10, True)
    assert view_batch(project, store).head.reason == "first"


def test_a_long_reason_is_kept_whole(project: Project, store: Store, maps: Path) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    reason = "ж" * 3000
    cancel_batch(project, store, batch, reason=reason)
    entry = store.get(batch_key(project.project_id, batch))
    assert entry is not None
    assert json.loads(entry.value)["reason"] == reason
    assert len(json.dumps(entry.metadata)) <= 1024


def test_an_upload_ends_at_its_next_chunk_when_its_batch_is_cancelled(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "CHUNK_PAGES", 4)

    class Cancels:
        def begin(self, what: str, total: int | None) -> None:
            pass

        def advance(self, steps: int = 1) -> None:
            cancel_batch(project, store, "latest")

    with pytest.raises(BatchCancelledError):
        upload(project, store, maps, progress=Cancels())
    view = view_batch(project, store)
    assert (view.status, view.tally.total, view.tally.counts["cancelled"]) == ("cancelled", 4, 4)
    assert queued(project, store) == 0
    assert verify_batch(project, store).findings == []


def test_failed_pages_of_a_cancelled_batch_can_be_retried_and_the_others_stay(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    fails = failing("dist/page-000.html")

    def process(page: Any, progress: Any) -> Any:
        with project.open_store() as another:
            cancel_batch(project, another, batch)
        return fails(page, progress)

    work(project, store, process, concurrency=1)
    assert view_batch(project, store).tally.counts["failed"] == 1
    assert len(retry_pages(project, store).requeued) == 1
    work(project, store)
    counts = view_batch(project, store).tally.counts
    assert (counts["done"], counts["cancelled"]) == (1, 9)


@pytest.mark.parametrize("name", ["batch_20200101_000000", "nothing"])
def test_a_batch_that_is_not_there_cannot_be_cancelled(
    project: Project, store: Store, maps: Path, name: str
) -> None:
    upload(project, store, maps)
    with pytest.raises(NotFoundError):
        cancel_batch(project, store, name)
    assert view_batch(project, store).status == "queued"


@pytest.mark.parametrize("after", [0, 1])
def test_a_batch_whose_upload_was_cut_off_ends_when_it_is_cancelled(
    project: Project, store: Store, maps: Path, after: int
) -> None:
    batch = upload_cut_off(project, store, maps, after=after)
    assert view_batch(project, store, batch).tally.counts["queued"] == 4 * after
    cancel_batch(project, store, batch)
    view = view_batch(project, store, batch)
    assert (view.status, view.is_finished) == ("cancelled", True)
    assert sum(view.tally.counts.values()) == view.tally.total
    assert queued(project, store) == 0
    assert verify_batch(project, store).findings == []
    with pytest.raises(UsageError, match="cancelled"):
        upload(project, store, maps, batch=batch)
