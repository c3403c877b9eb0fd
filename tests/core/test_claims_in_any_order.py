"""Whatever workers do with a page, in any order."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.claims import Claim
from nimbus_tasks.core.keys import queue_prefix, status_key
from nimbus_tasks.core.lapses import find_lapsed
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.records import queue_entry
from nimbus_tasks.kv.store import Store
from tests.core.claiming import (
    at,
    cancel,
    claim,
    failure,
    finish,
    iso,
    queue,
    release,
    renew,
    status_of,
    success,
    take_up,
)
from tests.core.stored_batches import LATER, PROJECT, put_batch, undone

ACTIONS = ["claim", "succeed", "fail", "try again", "renew", "release", "lapse", "cancel", "retry"]


@settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50)), max_size=25))
def test_whatever_workers_do_a_page_is_queued_once_or_not_and_an_attempt_has_one_outcome(
    store: Store, actions: list[tuple[str, int]]
) -> None:
    with undone(store):
        put_batch(store, LATER)
        put_batch(store)
        queue(store, "page_a", "page_b")
        queue(store, "page_c", batch_id=LATER)
        claims: list[Claim] = []
        counted: list[tuple[str, int]] = []
        now = 0.0
        for action, which in actions:
            now += 20
            if action == "claim":
                claims += claim(store, which % 3, now=now)
            elif action == "cancel":
                cancel(store)
            elif action == "lapse":
                take_up(store, *find_lapsed(list_pages(store, PROJECT), at(now)), now=now)
            elif action == "retry":
                _retry_failed(store, now)
            elif claims:
                held = claims[which % len(claims)]
                counted += _act(store, action, held, now)
            _check_queue(store)
        assert len(counted) == len(set(counted))


def _act(store: Store, action: str, held: Claim, now: float) -> list[tuple[str, int]]:
    """What a holder does; returns the attempt if an outcome of it has counted."""
    if action == "renew":
        renew(store, held, now=now)
        return []
    if action == "release":
        release(store, held, now=now)
        return []
    outcome = success(held) if action == "succeed" else failure(held)
    outcome = outcome._replace(completed=iso(now), try_again=action == "try again")
    refused = finish(store, outcome, now=now)
    return [] if refused else [(str(held.status.claim), held.attempt)]


def _retry_failed(store: Store, now: float) -> None:
    for page_id in ("page_a", "page_b", "page_c"):
        status = status_of(store, page_id)
        if status.state == "failed":
            queued = status.as_queued(8, iso(now))
            store.put_many([queued.entry(status_key(PROJECT, page_id))])
            store.put_many([queue_entry(PROJECT, page_id, queued)])


def _check_queue(store: Store) -> None:
    """A queued page has one item, where it says; any other page has none."""
    keys = [info.key for info in store.scan(queue_prefix(PROJECT))]
    expected = [
        status_of(store, page_id).queue_key(PROJECT, page_id)
        for page_id in ("page_a", "page_b", "page_c")
    ]
    assert sorted(keys) == sorted(key for key in expected if key is not None)
