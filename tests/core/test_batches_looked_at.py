"""A look at a batch: its status, its pages in flight, its failures, its pace."""

from __future__ import annotations

import pytest

from nimbus_tasks.core import batches
from nimbus_tasks.core.pace import UNKNOWN
from nimbus_tasks.kv.store import Store
from tests.core.stored_batches import BATCH, NOW, PROJECT, ago, counts, put_batch, put_page


def test_a_look_at_a_batch_has_the_documented_json(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done", duration_ms=40)

    assert batches.look(store, head, NOW).to_json() == {
        "batch_id": BATCH,
        "project_id": PROJECT,
        "status": "processing",
        "created": head.created,
        "page_count": 2,
        "counts": counts(done=1, uploaded=1),
        "summary": {"completed": 1, "failed": 0, "pending": 1, "average_time_ms": 40},
        "finished": False,
        "pages_per_second": None,
        "seconds_left": [None, None],
        "stalled": 0,
    }


def test_a_look_shows_the_pages_in_flight_the_oldest_first(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c")
    put_page(store, "page_a", "processing", started=ago(5), step="read", progress=20)
    put_page(store, "page_b", "processing", started=ago(50))
    put_page(store, "page_c", "processing")

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.in_flight] == ["page_c", "page_b", "page_a"]
    assert view.in_flight[-1].status["step"] == "read"


def test_a_page_whose_lease_is_over_is_stalled_and_still_in_flight(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b", "page_c")
    put_page(store, "page_a", "processing", lease=ago(1))
    put_page(store, "page_b", "processing", lease=ago(-1))
    put_page(store, "page_c", "processing")  # the seed's: it names no lease

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.stalled] == ["page_a"]
    assert len(view.in_flight) == 3
    assert view.to_json()["stalled"] == 1


def test_the_pace_is_known_only_while_somebody_is_at_work(store: Store) -> None:
    head = put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done", started=ago(20), completed=ago(10))
    put_page(store, "page_b", "processing", lease=ago(-1))

    assert batches.look(store, head, NOW).pace != UNKNOWN
    put_page(store, "page_b", "processing", lease=ago(1))
    assert batches.look(store, head, NOW).pace == UNKNOWN
    put_page(store, "page_b", "queued")
    assert batches.look(store, head, NOW).pace == UNKNOWN


def test_a_look_shows_the_failures_the_latest_first(store: Store) -> None:
    head = put_batch(store, BATCH, *(f"page_{name}" for name in "abcd"))
    put_page(store, "page_a", "failed", completed=ago(30), error="old")
    put_page(store, "page_b", "failed", completed=ago(10), error="new", path="b.html")
    put_page(store, "page_c", "failed", completed=ago(20), error="middle")
    put_page(store, "page_d", "failed")

    view = batches.look(store, head, NOW)

    assert [page.page_id for page in view.failures] == ["page_b", "page_c", "page_a", "page_d"]
    assert [page.name for page in view.failures[:2]] == ["b.html", "page_c"]


def test_a_look_keeps_the_latest_failures_and_counts_them_all(store: Store) -> None:
    failed = batches.FAILURES_KEPT + 30
    head = put_batch(store, BATCH, *(f"page_{number}" for number in range(failed)))
    # The listing meets them neither from the oldest nor from the newest on.
    with store.transaction() as tx:
        for number in range(failed):
            age = number * 37 % failed
            put_page(tx, f"page_{number}", "failed", completed=ago(age), path=f"{age:03d}")

    view = batches.look(store, head, NOW)

    assert [page.name for page in view.failures] == [
        f"{age:03d}" for age in range(batches.FAILURES_KEPT)
    ]
    assert view.tally.counts == counts(failed=failed)


@pytest.mark.parametrize(
    ("intent", "states", "status", "finished"),
    [
        ("run", ["done", "done"], "completed", True),
        ("run", ["done", "failed"], "partially_completed", True),
        ("run", ["failed", "failed"], "failed", True),
        ("run", ["done"], "processing", False),
        ("retry", ["done", "queued"], "retrying", False),
        ("cancel", ["processing", "cancelled"], "cancelling", False),
        ("cancel", ["done", "cancelled"], "cancelled", True),
        ("upload", ["done", "done"], "uploading", False),
    ],
)
def test_the_status_of_a_look_follows_from_intent_and_pages(
    store: Store, intent: str, states: list[str], status: str, finished: bool
) -> None:
    head = put_batch(store, BATCH, "page_0", "page_1", intent=intent)
    for number, state in enumerate(states):
        put_page(store, f"page_{number}", state)

    view = batches.look(store, head, NOW)

    assert (view.status, view.is_finished) == (status, finished)
