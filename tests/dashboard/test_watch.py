"""One reader for all who watch, only while somebody does, and for as long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.core import batches
from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.project import Project
from nimbus_tasks.dashboard.documents import LookAtBatch
from nimbus_tasks.dashboard.reading import NoStoreYetError, StoreThread
from nimbus_tasks.dashboard.watch import Look, State, Watch, Watches
from nimbus_tasks.kv.store import KeyValues, Store
from tests.dashboard.served import looks_taken, served
from tests.factories import failing, upload, work, write_maps

LONG = 3600.0
Scenario = Callable[[], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    """Run it; a hang ends."""
    asyncio.run(asyncio.wait_for(scenario(), 20))


class Counted:
    """A look that counts how often it is taken, on which thread, and can fail."""

    def __init__(self) -> None:
        self.taken = 0
        self.threads: set[int] = set()
        self.error: Exception | None = None

    def __call__(self, store: Store) -> dict[str, Any]:
        self.taken += 1
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        return {"taken": self.taken}


async def states(watch: Watch, count: int, version: int = 0) -> list[State]:
    found = []
    for _ in range(count):
        state = await watch.after(version)
        assert state is not None
        found.append(state)
        version = state.version
    return found


@pytest.mark.usefixtures("store")
def test_two_who_watch_cost_one_read(project: Project) -> None:
    look = Counted()
    watches = Watches(StoreThread(project), LONG)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as one, watches.watch("a", lambda: look) as two:
            assert await states(one, 1) == await states(two, 1)
        assert look.taken == 1
        assert threading.get_ident() not in look.threads

    run(scenario)


def test_ten_pages_cost_what_one_does(
    project: Project, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = looks_taken(monkeypatch)
    with served(project, interval=LONG) as dashboard, ExitStack() as pages:
        opened = [pages.enter_context(dashboard.events(batch)) for _ in range(10)]
        assert [next(events)[0] for events in opened] == ["look"] * 10
    assert len(taken) == 1


@pytest.mark.usefixtures("store")
def test_nothing_is_read_when_nobody_watches(project: Project) -> None:
    look = Counted()
    watches = Watches(StoreThread(project), 0.001)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as watch:
            await states(watch, 3)
        await asyncio.sleep(0.05)  # a read that was under way
        taken = look.taken
        await asyncio.sleep(0.1)
        assert look.taken == taken
        with watches.watch("a", lambda: look) as again:
            assert again is not watch
            await states(again, 1)

    run(scenario)


@pytest.mark.usefixtures("store")
def test_who_comes_later_gets_what_is_known_and_who_is_slow_skips(project: Project) -> None:
    look = Counted()
    watches = Watches(StoreThread(project), 0.001)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as watch:
            await states(watch, 5)
            late = await watch.after(0)
            assert late is not None
            assert late.document is not None
            assert late.document["taken"] >= 5

    run(scenario)


@pytest.mark.usefixtures("store")
def test_a_fault_keeps_what_was_known_with_its_age_and_goes_when_it_can_be_read(
    project: Project,
) -> None:
    look = Counted()
    watches = Watches(StoreThread(project), 0.01)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as watch:
            (known,) = await states(watch, 1)
            look.error = StoreError("it is away", advice="Wait.")
            version = known.version
            while (state := (await states(watch, 1, version))[0]).fault is None:
                version, known = state.version, state
            first, second = state, (await states(watch, 1, state.version))[0]
            assert first.document == second.document == known.document
            assert first.read_at == second.read_at == known.read_at
            assert second.fault is not None
            assert first.fault is not None
            assert (second.fault.message, second.fault.advice) == ("it is away", "Wait.")
            look.error = None
            version = second.version
            while (state := (await states(watch, 1, version))[0]).fault is not None:
                version = state.version
            assert state.read_at > known.read_at

    run(scenario)


@pytest.mark.usefixtures("store")
def test_a_fault_of_any_kind_does_not_end_the_watch(project: Project) -> None:
    look = Counted()
    look.error = TypeError("\x1b[2Jnobody has thought of it")
    watches = Watches(StoreThread(project), 0.01)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as watch:
            (state,) = await states(watch, 1)
            assert state.fault is not None
            assert state.fault.message == "TypeError: nobody has thought of it"
            look.error = None
            while state.document is None:
                (state,) = await states(watch, 1, state.version)

    run(scenario)


class Budgeted(StoreThread):
    """A thread whose store wants fewer reads."""

    async def run(self, do: Any) -> Any:
        found = await super().run(do)
        self.read_pause = LONG
        return found


@pytest.mark.usefixtures("store")
def test_the_interval_is_stretched_as_the_store_asks_and_that_is_said(project: Project) -> None:
    look = Counted()
    watches = Watches(Budgeted(project), 0.001)

    async def scenario() -> None:
        with watches.watch("a", lambda: look) as watch:
            (state,) = await states(watch, 1)
            assert state.note.startswith("looks every 3600 s")
            await asyncio.sleep(0.1)
            assert look.taken == 1
            watches.nudge()
            await states(watch, 1, state.version)
            assert look.taken == 2

    run(scenario)


@pytest.mark.usefixtures("store")
def test_what_the_store_waits_for_is_told(project: Project) -> None:
    watches = Watches(StoreThread(project), LONG)

    async def scenario() -> None:
        with watches.watch("a", Counted) as watch:
            (state,) = await states(watch, 1)
            watches.note("Cloudflare asks to wait\x07 240 s")
            (state,) = await states(watch, 1, state.version)
            assert state.note == "Cloudflare asks to wait 240 s"

    run(scenario)


def test_a_project_without_a_store_is_empty_until_it_has_one(project: Project) -> None:
    look = Counted()
    thread = StoreThread(project)
    watches = Watches(thread, 0.01)

    async def scenario() -> None:
        with pytest.raises(NoStoreYetError):
            await thread.run(look)
        with watches.watch("a", lambda: look, {"empty": True}) as watch:
            (state,) = await states(watch, 1)
            assert state.document == {"empty": True}
            with project.open_store(create=True):
                pass
            while state.document == {"empty": True}:
                (state,) = await states(watch, 1, state.version)
        with watches.watch("b", lambda: look) as watch:
            (state,) = await states(watch, 1)
            assert state.document is not None

    run(scenario)


@pytest.mark.usefixtures("store")
def test_the_end_lets_go_of_all_and_of_who_comes_after(project: Project) -> None:
    watches = Watches(StoreThread(project), LONG)

    async def scenario() -> None:
        with watches.watch("a", Counted) as watch:
            (state,) = await states(watch, 1)
            waiting = asyncio.ensure_future(watch.after(state.version))
            await asyncio.sleep(0)
            watches.end()
            assert await waiting is None
        with watches.watch("b", Counted) as late:
            assert await late.after(0) is None

    run(scenario)


def test_an_ended_batch_is_not_folded_again_until_something_is_done_to_it(
    project: Project, store: Store, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = []
    real = batches.look

    def counted(store: KeyValues, head: BatchHead, now: datetime, **more: str) -> BatchView:
        folded.append(head)
        return real(store, head, now, **more)

    monkeypatch.setattr(batches, "look", counted)
    look: Look = LookAtBatch(project, batch)
    assert look(store) == look(store) == look(store)
    assert len(folded) == 1
    retry_pages(project, store, batch)
    assert look(store)["status"] == "retrying"
    assert look(store)["status"] == "retrying"
    assert len(folded) == 3


def test_more_failures_than_are_shown_are_all_in_the_groups(
    project: Project, store: Store, maps: Path
) -> None:
    write_maps(maps, 70)
    batch_id = str(upload(project, store, maps).batch_id)

    def process(page: Any, progress: Any) -> Any:
        raise ValueError(f"no title in {page['source_path']}")

    work(project, store, process)
    look = LookAtBatch(project, batch_id)(store)
    assert [group["count"] for group in look["groups"]] == [70]
    assert len(look["failures"]) == 50


def test_pages_of_a_later_batch_are_not_offered_for_a_retry(
    project: Project, store: Store, maps: Path
) -> None:
    batch_id = upload(project, store, maps).batch_id
    assert batch_id is not None
    work(project, store, failing("dist/page-001.html"))
    look = LookAtBatch(project, batch_id)(store)
    assert (look["can_retry"], look["groups"][0]["retry"] is None) == (True, False)

    upload(project, store, maps)
    look = LookAtBatch(project, batch_id)(store)
    assert (look["can_retry"], look["groups"][0]["retry"]) == (False, None)
