"""What a worker that has nothing to do waits for: the pages of one that may be gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus_tasks.core.clock import iso_after, utc_now
from nimbus_tasks.core.keys import status_key
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Store
from nimbus_tasks.worker.lookout import Lookout

PROJECT = "proj_0123456789ab"
BEGUN = utc_now()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with SqliteStore(tmp_path / "kv.sqlite3", create=True) as made:
        yield made


def hold(store: Store, page_id: str, *, made: float = 0, until: float = 60) -> None:
    """The page is at work, by a claim of that second that lasts until that one."""
    started, lease = (iso_after(seconds, start=BEGUN) for seconds in (made, until))
    status = PageStatus("processing", "batch_20261124_081302", started, attempts=1)
    held = status.changed(claim="c", started=started, lease=lease)
    store.put_many([held.entry(status_key(PROJECT, page_id))])


def expected(lookout: Lookout, store: Store) -> str | None:
    return lookout.what_is_expected(store, list(list_pages(store, PROJECT)))


def waits(lookout: Lookout, store: Store) -> bool:
    return expected(lookout, store) == "the leases of a worker that may be gone"


def test_a_claim_that_is_renewed_has_a_holder_of_its_own(store: Store) -> None:
    lookout = Lookout(PROJECT, None)
    hold(store, "page_1")
    assert waits(lookout, store)
    assert waits(lookout, store)
    hold(store, "page_1", until=80)
    assert expected(lookout, store) is None
    hold(store, "page_2")
    assert waits(lookout, store)


def test_another_claim_in_the_place_of_one_is_no_sign_of_life(store: Store) -> None:
    """On KV a claim may be written over an outcome, by one that has let go of the page since."""
    lookout = Lookout(PROJECT, None)
    hold(store, "page_1")
    assert waits(lookout, store)
    hold(store, "page_1", made=5, until=65)
    assert waits(lookout, store)
    hold(store, "page_1", made=5, until=85)
    assert expected(lookout, store) is None


def test_a_holder_that_was_alive_before_there_was_work_may_have_gone_since(store: Store) -> None:
    lookout = Lookout(PROJECT, None)
    hold(store, "page_1")
    assert waits(lookout, store)
    hold(store, "page_1", until=80)
    lookout.start_over()
    assert waits(lookout, store)


def test_a_page_that_has_just_become_old_enough_to_be_put_back_is_waited_for(
    tmp_path: Path,
) -> None:
    """It was too new when pages in no queue were looked for, a moment ago."""
    lookout, store = Lookout(PROJECT, None), SqliteStore(tmp_path / "kv.sqlite3", create=True)
    with store:
        store.lag_seconds = 10.0
        for seconds, waits_for_it in ((-10.01, True), (-21.0, False)):
            queued = PageStatus("queued", "batch_20261124_081302", iso_after(seconds))
            store.put_many([queued.entry(status_key(PROJECT, "page_1"))])
            assert (expected(lookout, store) is not None) == waits_for_it


def test_an_older_lease_is_no_sign_of_life(store: Store) -> None:
    """Of a place that the last renewal has not reached."""
    lookout = Lookout(PROJECT, None)
    hold(store, "page_1", until=80)
    assert waits(lookout, store)
    hold(store, "page_1", until=60)
    assert waits(lookout, store)
