"""Histories that nobody has thought of: every operation in any order, killed anywhere.

Hypothesis draws histories of uploads, claims, outcomes, crashes, lapses, retries, cancels and
repairs, on the embedded store and on a KV whose reads are stale and whose answers get lost, and
looks after each step whether the rules of the design hold. ``NIMBUS_HISTORIES=10000`` draws as many
of each; a history that fails is printed as the calls that lead to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core import batches, clock
from nimbus_tasks.core.claims import (
    Claim,
    Outcome,
    claim_pages,
    finish_pages,
    release_claims,
    renew_claims,
)
from nimbus_tasks.core.clock import now_iso, utc_now
from nimbus_tasks.core.errors import NimbusError, StoreUnreachableError
from nimbus_tasks.core.keys import last_part, logs_key, status_prefix
from nimbus_tasks.core.lapses import find_lapsed, take_up_lapsed
from nimbus_tasks.core.lifecycle import TERMINAL_PAGE_STATES, Intent
from nimbus_tasks.core.logs import log_entry, read_logs
from nimbus_tasks.core.pages import PageInfo, list_pages, read_statuses
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.queue import find_unqueued, put_in_queue
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import KeyValues, Store
from tests.factories import a_map, upload, write_map
from tests.kv.memory_kv import Cloud, Killed, MemoryClient

HISTORIES = int(os.environ.get("NIMBUS_HISTORIES", "30"))
#: Making a long history short takes minutes, which is for whoever looks for a fault.
PHASES = [phase for phase in Phase if phase is not Phase.shrink or "NIMBUS_SHRINK" in os.environ]
LEASE = 30.0
PAGES = [f"dist/{letter}.html" for letter in "abcde"]
some_pages = st.sets(st.sampled_from(PAGES), min_size=1)
#: Chooses one of what is there at that moment.
choice = st.integers(min_value=0, max_value=50)


class Clock:
    """The time of a history: nothing in it depends on how fast the machine is."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def patched(self) -> Any:
        """``core.clock`` with this time in it; no two looks at it are the same."""

        class Ticking(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Ticking:
                self.seconds += 0.000_01
                return cls.fromtimestamp(self.seconds, tz)

        return mock.patch.object(clock, "datetime", Ticking)


class Histories(RuleBasedStateMachine):
    """What every store must keep to. Two workers hold claims; there is one uploader at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="nimbus-history-"))
        self.project = Project(self.root, "proj_0123456789ab", "model", "")
        self.folder = self.root / "maps"
        self.clock = Clock()
        self.patch = self.clock.patched()
        self.patch.start()
        self.held: list[Claim] = []
        self.counted: Counter[str] = Counter()
        self.before: dict[str, PageStatus] = {}
        self.may_change: set[str] = set()
        self.versions = 0
        self.store = self.open_store()

    # --- what a store's own machine defines ---

    def open_store(self) -> Store:
        raise NotImplementedError

    @contextmanager
    def killed_in(self, steps: int) -> Iterator[None]:
        """The process is killed after so many steps of writing."""
        raise NotImplementedError

    def step(self) -> None:
        """Some time goes by."""

    def catch_up(self) -> None:
        """What was sent by a command that did not come to its end is seen, as far as it arrived."""

    # --- the operations ---

    def attempt(self, operation: Callable[[], Any]) -> Any:
        """Run one command; one that the store fails is run again as it was typed."""
        self.step()
        for _ in range(30):
            with contextlib.suppress(StoreUnreachableError):
                try:
                    return operation()
                except StoreUnreachableError:
                    self.catch_up()
                    raise
                except NimbusError:
                    return None
        raise AssertionError("never reachable")

    def restart(self) -> None:
        """A new process: what was in hand is lost."""
        self.store.close()
        self.store = self.open_store()
        self.held = []

    def write_folder(self, paths: set[str], *, anew: bool) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.versions += anew
        for path in paths:
            content = a_map(path, version=self.versions)
            write_map(self.folder, path.replace("/", "-") + ".json", content)

    def batch(self, number: int) -> str | None:
        heads = self.attempt(lambda: batches.heads(self.store, self.project.project_id))
        return heads[number % len(heads)].batch_id if heads else None

    @initialize(paths=some_pages)
    def begin(self, paths: set[str]) -> None:
        self.send(paths, changed=False, anew=True)

    @rule(paths=some_pages, changed=st.booleans(), anew=st.booleans())
    def send(self, paths: set[str], changed: bool, anew: bool) -> None:
        self.write_folder(paths, anew=anew)
        self.may_change |= set(self.before)
        self.attempt(lambda: upload(self.project, self.store, self.folder, changed=changed))

    @rule(paths=some_pages, steps=st.integers(0, 12), again=st.booleans())
    def send_and_be_killed(self, paths: set[str], steps: int, again: bool) -> None:
        self.write_folder(paths, anew=True)
        self.may_change |= set(self.before)
        with self.killed_in(steps):
            self.attempt(lambda: upload(self.project, self.store, self.folder))
        self.restart()
        if again:
            self.attempt(lambda: upload(self.project, self.store, self.folder))

    @rule(number=choice)
    def send_to(self, number: int) -> None:
        batch = self.batch(number)
        self.may_change |= set(self.before)
        self.attempt(lambda: upload(self.project, self.store, self.folder, batch=batch))

    @rule(count=st.integers(1, 3), number=st.none() | choice)
    def claim(self, count: int, number: int | None) -> None:
        batch = None if number is None else self.batch(number)
        self.may_change |= set(self.before)  # pages of a cancelled batch become cancelled

        def claim() -> list[Claim]:
            with self.store.transaction() as tx:
                return claim_pages(tx, self.project.project_id, count, LEASE, utc_now(), batch)

        claims = self.attempt(claim)
        assert len({c.page_id for c in claims}) == len(claims)
        self.held += claims

    @precondition(lambda self: self.held)
    @rule(number=choice, how=st.sampled_from(["done", "failed", "again"]))
    def finish(self, number: int, how: str) -> None:
        claim = self.held.pop(number % len(self.held))
        self.may_change.add(claim.page_id)
        self.finish_claims([claim], how)

    def finish_claims(self, claims: list[Claim], how: str) -> None:
        outcomes = [an_outcome(claim, how) for claim in claims]

        def finish() -> Any:
            with self.store.transaction() as tx:
                return finish_pages(tx, self.project.project_id, outcomes, utc_now())

        counted, refused = self.attempt(finish)
        assert len(counted) + len(refused) == len(outcomes)

    @precondition(lambda self: self.held)
    @rule()
    def renew(self) -> None:
        def renew() -> Any:
            with self.store.transaction() as tx:
                held = {c.page_id: (c, "step", 40.0) for c in self.held}
                return renew_claims(tx, self.project.project_id, held, LEASE, utc_now())

        lost = self.attempt(renew)
        self.held = [claim for claim in self.held if claim.page_id not in lost]

    @precondition(lambda self: self.held)
    @rule(number=choice)
    def release(self, number: int) -> None:
        claim = self.held.pop(number % len(self.held))
        self.may_change.add(claim.page_id)

        def release() -> Any:
            with self.store.transaction() as tx:
                return release_claims(tx, self.project.project_id, [claim], utc_now())

        self.attempt(release)

    @rule()
    def crash(self) -> None:
        self.restart()

    @rule(seconds=st.sampled_from([LEASE / 2, LEASE + 1, 200.0]))
    def time_goes(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def pages(self) -> list[PageInfo]:
        return list(list_pages(self.store, self.project.project_id))

    @rule()
    def take_up(self) -> None:
        lapsed = self.attempt(lambda: find_lapsed(self.pages(), utc_now()))
        self.may_change |= lapsed.keys()

        def take_up() -> Any:
            with self.store.transaction() as tx:
                return take_up_lapsed(tx, self.project.project_id, lapsed, utc_now())

        self.attempt(take_up)

    @rule(number=choice, cancelled=st.booleans())
    def retry(self, number: int, cancelled: bool) -> None:
        batch = self.batch(number)
        self.may_change |= set(self.before)
        self.attempt(
            lambda: retry_pages(self.project, self.store, batch, include_cancelled=cancelled)
        )

    @rule(number=choice)
    def cancel(self, number: int) -> None:
        batch = self.batch(number)
        if batch is not None:
            self.may_change |= set(self.before)
            self.attempt(lambda: cancel_batch(self.project, self.store, batch))

    @rule(number=choice, repair=st.booleans())
    def verify(self, number: int, repair: bool) -> None:
        batch = self.batch(number)
        if repair:
            self.may_change |= set(self.before)
        self.attempt(lambda: verify_batch(self.project, self.store, batch, repair=repair))

    # --- what always holds ---

    def statuses(self) -> dict[str, PageStatus]:
        def read() -> dict[str, PageStatus]:
            keys = [info.key for info in self.store.scan(status_prefix(self.project.project_id))]
            return read_statuses(self.store, self.project.project_id, map(last_part, keys))

        found: dict[str, PageStatus] = self.attempt(read)
        return found

    @invariant()
    def pages_that_have_ended_change_only_when_they_are_told_to(self) -> None:
        after = self.statuses()
        for page_id, old in self.before.items():
            if old.state in TERMINAL_PAGE_STATES and page_id not in self.may_change:
                assert after[page_id] == old
        self.before, self.may_change = after, set()

    @invariant()
    def counts_add_up_and_nothing_is_finished_early(self) -> None:
        def look() -> list[batches.BatchView]:
            with self.store.snapshot() as reading:
                heads = batches.heads(reading, self.project.project_id)
                return [batches.look(reading, head, utc_now()) for head in heads]

        for view in self.attempt(look):
            counts = view.tally.counts
            assert sum(counts.values()) == view.tally.total
            assert all(count >= 0 for count in counts.values())
            open_pages = counts["uploaded"] + counts["queued"] + counts["processing"]
            if view.is_finished:
                assert open_pages == 0, counts
            if view.head.is_final:
                assert (view.head.status, dict(view.head.counts)) == (view.status, counts)

    @invariant()
    def no_page_has_two_outcomes_of_one_attempt(self) -> None:
        for page_id in self.before:
            key = logs_key(self.project.project_id, page_id)
            entries = read_logs(self.attempt(partial(self.store.get, key)))
            ends = Counter(
                (entry["data"]["batch_id"], entry["data"]["claim"])
                for entry in entries
                if entry["step"] == "end"
            )
            assert max(ends.values(), default=0) <= 1, entries
            # The history is complete: nothing that was counted is missing from it.
            assert sum(ends.values()) >= self.counted[page_id]
            self.counted[page_id] = sum(ends.values())

    # --- the end: whatever has happened, all of it comes to an end ---

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.patch.stop()
            self.store.close()
            shutil.rmtree(self.root, ignore_errors=True)

    def come_to_an_end(self) -> None:
        self.restart()
        project_id = self.project.project_id
        self.write_folder(set(PAGES), anew=False)
        for head in self.attempt(lambda: batches.heads(self.store, project_id)):
            if head.intent == Intent.UPLOAD:
                name = head.batch_id
                self.attempt(partial(upload, self.project, self.store, self.folder, batch=name))
        self.clock.seconds += 3600  # a lease of a clock that was set back since is that far away
        # Of pages that may be what makes workers vanish, one is claimed at a time.
        for _ in range(4 + len(PAGES)):
            self.clock.seconds += 10 * LEASE
            self.take_up()
            self.attempt(self.put_back)
            self.claim(10, None)
            self.finish_claims(self.held, "done")
            self.held = []
        for head in self.attempt(lambda: batches.heads(self.store, project_id)):
            name = head.batch_id
            self.attempt(partial(verify_batch, self.project, self.store, name, repair=True))
        self.counts_add_up_and_nothing_is_finished_early()
        self.no_page_has_two_outcomes_of_one_attempt()
        pages: list[PageInfo] = self.attempt(lambda: list(list_pages(self.store, project_id)))
        states = {page.page_id: page.status["status"] for page in pages}
        assert set(states.values()) <= TERMINAL_PAGE_STATES, states
        for head in self.attempt(lambda: batches.heads(self.store, project_id)):
            assert head.is_final or head.intent == Intent.UPLOAD, head
        self.settled()

    def put_back(self) -> None:
        with self.store.transaction() as tx:
            lost = find_unqueued(tx, self.project.project_id, self.pages(), utc_now())
            put_in_queue(tx, self.project.project_id, lost)

    def settled(self) -> None:
        """What else must hold when all is quiet."""


def an_outcome(claim: Claim, how: str) -> Outcome:
    facts = {"batch_id": claim.status.batch_id, "claim": claim.status.claim}
    fields: dict[str, Any] = {"changes": 1, "confidence": 0.5}
    if how != "done":
        fields = {"error": "no", "code": "broken", "try_again": how == "again"}
    return Outcome(
        claim=claim,
        started=now_iso(),
        completed=now_iso(),
        duration_ms=1,
        entries=(log_entry(now_iso(), "end", how, data=facts),),
        **fields,
    )


class OnSqlite(Histories):
    """The embedded store: killed between transactions or in one."""

    def open_store(self) -> Store:
        return SqliteStore(self.root / "kv.sqlite3", create=True)

    @contextmanager
    def killed_in(self, steps: int) -> Iterator[None]:
        real, left = self.store.transaction, steps

        @contextmanager
        def transaction() -> Iterator[KeyValues]:
            nonlocal left
            left -= 1
            with real() as tx:
                yield tx
                if left == 0:
                    raise Killed  # before it is committed
            if left == 1:
                left = -1
                raise Killed  # when it has been

        self.store.transaction = transaction  # type: ignore[method-assign]
        with contextlib.suppress(Killed):
            yield

    @rule(seconds=st.sampled_from([5.0, 3600.0]))
    def the_clock_is_set_back(self, seconds: float) -> None:
        self.clock.seconds -= seconds

    @invariant()
    def what_is_queued_can_be_claimed(self) -> None:
        project_id = self.project.project_id
        assert find_unqueued(self.store, project_id, self.pages(), utc_now()) == {}


class OnKV(Histories):
    """A directory on a KV that lags by up to a minute, and now and then loses an answer."""

    def open_store(self) -> Store:
        if not hasattr(self, "cloud"):
            self.cloud = Cloud(self.clock, lag=60.0)
            self.cloud.trouble = 0.02
        return self.of_directory("here")

    def of_directory(self, name: str) -> Store:
        journal = Journal(self.root / name / "journal.sqlite3", self.clock)
        client: Any = MemoryClient(self.cloud)
        return CloudflareStore(
            client, journal, paced=False, sleep=self.clock.sleep, clock=self.clock
        )

    @contextmanager
    def killed_in(self, steps: int) -> Iterator[None]:
        self.cloud.kill_in = steps
        with contextlib.suppress(Killed):
            yield
        self.cloud.kill_in = None
        self.catch_up()

    def catch_up(self) -> None:
        # Nobody can tell what of a request was done whose sender is gone, or has tried in vain to
        # get an answer: until reads have caught up, they may show some of it.
        self.clock.seconds += 61

    def step(self) -> None:
        self.clock.seconds += self.cloud.random.uniform(1.1, 8.0)

    def settled(self) -> None:
        """When reads lag no more, another directory sees the same; no key was written too often."""
        here = self.statuses()
        self.cloud.trouble = 0.0
        self.clock.seconds += 3600
        with self.of_directory("there") as store:
            keys = [info.key for info in store.scan(status_prefix(self.project.project_id))]
            there = read_statuses(store, self.project.project_id, map(last_part, keys))
        assert there == here
        assert self.cloud.written_twice == []


@pytest.mark.parametrize("machine", [OnSqlite, OnKV])
def test_the_rules_hold_in_every_history(machine: type[Histories]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=30,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
