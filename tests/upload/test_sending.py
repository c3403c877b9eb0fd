"""Sending maps: what is written, and that it can be cut off anywhere and run again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import (
    InterruptedByUserError,
    NotFoundError,
    UsageError,
)
from nimbus_tasks.core.keys import batch_key, last_part, page_id_for, queue_prefix, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.upload import sending
from nimbus_tasks.upload.folder import check_folder
from nimbus_tasks.upload.plan import plan_upload
from nimbus_tasks.worker import lookout
from tests.factories import a_map, failing, upload, upload_cut_off, work, write_map, write_maps


def everything(store: KeyValues) -> dict[str, Any]:
    """All that a store holds, by key."""
    keys = [info.key for info in store.scan("")]
    return {key: json.loads(entry.value) for key, entry in store.get_many(keys).items()}


def value(store: Store, key: str) -> Any:
    entry = store.get(key)
    assert entry is not None
    return json.loads(entry.value)


def counts(project: Project, store: Store, batch: str | None = None) -> dict[str, int]:
    counted = view_batch(project, store, batch).tally.counts
    return {state: count for state, count in counted.items() if count}


def queued_pages(project: Project, store: Store) -> list[str]:
    return [last_part(info.key) for info in store.scan(queue_prefix(project.project_id))]


def test_a_page_is_written_with_all_its_records(project: Project, store: Store) -> None:
    content = a_map("dist/a.html", dimensions={"w": 1}, flags=["x"], price="£1 – é")
    write_map(project.folder / "maps", "a.json", content)
    outcome = upload(project, store, project.folder / "maps")
    page_id = page_id_for(project.project_id, "dist/a.html")
    page = value(store, f"page:{project.project_id}:{page_id}")
    assert page["extraction"] == content
    assert (page["page_id"], page["source_path"]) == (page_id, "dist/a.html")
    assert (page["project_id"], page["batch_id"]) == (project.project_id, outcome.batch_id)
    status = value(store, f"status:{project.project_id}:{page_id}")
    assert (status["status"], status["attempts"]) == ("queued", 0)
    batch = value(store, f"batch:{project.project_id}:{outcome.batch_id}")
    assert batch["pages"][page_id]["status"] == "queued"
    assert (batch["status"], batch["page_count"]) == ("queued", 1)
    assert batch["summary"]["pending"] == 1
    [item] = [value(store, i.key) for i in store.scan(queue_prefix(project.project_id))]
    assert (item["page_id"], item["priority"], item["attempts"]) == (page_id, 5, 0)


def test_the_queue_has_the_order_of_the_files(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    names = [f"dist/page-{number:03d}.html" for number in range(10)]
    assert queued_pages(project, store) == [page_id_for(project.project_id, n) for n in names]


def test_two_batches_of_one_second_have_ids_of_their_own(
    project: Project, store: Store, maps: Path
) -> None:
    assert len({upload(project, store, maps).batch_id for _ in range(3)}) == 3


def test_a_batch_goes_on_with_what_it_lacks(project: Project, store: Store, maps: Path) -> None:
    first = upload(project, store, maps)
    write_map(maps, "new.json", a_map("dist/new.html"))
    write_map(maps, "page-003.json", a_map("dist/page-003.html", head={"title": "Changed"}))
    again = upload(project, store, maps, batch=first.batch_id)
    assert (again.batch_id, again.uploaded, again.skipped) == (first.batch_id, 2, 9)
    assert again.page_count == 11
    assert counts(project, store) == {"queued": 11}
    assert len(queued_pages(project, store)) == 11


def test_a_finished_batch_of_unchanged_pages_is_left_alone(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    work(project, store)
    before = everything(store)
    again = upload(project, store, maps, batch=batch)
    assert (again.uploaded, again.status) == (0, "completed")
    assert everything(store) == before


def test_only_changed_pages_are_sent_if_asked(project: Project, store: Store, maps: Path) -> None:
    upload(project, store, maps)
    work(project, store)
    nothing = upload(project, store, maps, changed=True)
    assert (nothing.batch_id, nothing.uploaded, nothing.skipped) == (None, 0, 10)
    write_map(maps, "page-003.json", a_map("dist/page-003.html", head={"title": "Changed"}))
    one = upload(project, store, maps, changed=True)
    assert (one.uploaded, one.page_count, one.skipped) == (1, 1, 9)


def test_a_dry_run_writes_nothing(project: Project, store: Store, maps: Path) -> None:
    outcome = upload(project, store, maps, dry_run=True)
    assert (outcome.uploaded, outcome.page_count, outcome.batch_id) == (10, 10, None)
    assert everything(store) == {}


def test_an_unknown_or_cancelled_batch_takes_no_pages(
    project: Project, store: Store, maps: Path
) -> None:
    with pytest.raises(NotFoundError):
        upload(project, store, maps, batch="batch_20200101_000000")
    batch = upload(project, store, maps).batch_id
    assert batch is not None
    cancel_batch(project, store, batch)
    with pytest.raises(UsageError, match="cancelled"):
        upload(project, store, maps, batch=batch)


def test_pages_in_every_state_are_taken_over_and_both_batches_add_up(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-001.html"))
    write_maps(maps, 13)  # three more, which the first batch leaves queued
    upload(project, store, maps, batch=first)
    second = upload(project, store, maps)
    assert second.taken_over == 13
    assert counts(project, store, first) == {"done": 9, "failed": 1, "cancelled": 3}
    assert view_batch(project, store, first).status == "partially_completed"
    assert counts(project, store, second.batch_id) == {"queued": 13}
    assert len(queued_pages(project, store)) == 13
    work(project, store)
    assert counts(project, store, second.batch_id) == {"done": 13}
    assert counts(project, store, first) == {"done": 9, "failed": 1, "cancelled": 3}


def test_a_page_in_flight_that_is_sent_anew_is_worked_on_with_its_new_content(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        if page["source_path"] == "dist/page-000.html" and page["batch_id"] == first:
            with project.open_store() as another:  # while this page is in flight
                upload(project, another, maps)
        return {"changes": 1}

    first = view_batch(project, store).head.batch_id
    worked = work(project, store, process, concurrency=1)
    assert worked.refused == 1
    assert counts(project, store) == {"done": 10}
    assert counts(project, store, first)["cancelled"] >= 1


class CutOffError(Exception):
    """Stands for a kill at some write."""


@pytest.mark.parametrize("after", [*range(0, 28, 2), 1, 27])
def test_an_upload_cut_off_at_any_write_ends_as_a_clean_one(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(sending, "CHUNK_PAGES", 3)
    monkeypatch.setattr(lookout, "UPLOAD_SILENT_SECONDS", 0)  # the worker does not wait for it
    transactions = iter(range(100))
    real = type(store).transaction

    def cut_off(self: Store) -> Any:
        if next(transactions) == after:
            raise CutOffError
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "transaction", cut_off)
        with pytest.raises(CutOffError):
            upload(project, store, maps)
    if batches.heads(store, project.project_id):
        assert view_batch(project, store).status == "uploading"
        work(project, store)
        assert not view_batch(project, store).is_finished  # never finished before its time
        upload(project, store, maps, batch="latest")
    else:
        upload(project, store, maps)
    work(project, store)
    assert counts(project, store) == {"done": 10}
    assert queued_pages(project, store) == []
    assert view_batch(project, store).status == "completed"


def test_ctrl_c_says_how_to_go_on(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(sending, "_chunks", interrupted)
    with pytest.raises(InterruptedByUserError) as raised:
        upload(project, store, maps)
    assert raised.value.exit_code == 130
    assert raised.value.advice is not None
    assert "as you typed it" in raised.value.advice


def test_pages_listed_and_no_longer_in_the_folder_leave_the_batch(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps)
    (maps / "page-009.json").unlink()
    again = upload(project, store, maps, batch="latest")
    assert (again.page_count, again.dropped) == (9, 1)
    assert counts(project, store) == {"queued": 9}


def test_files_that_change_while_they_are_sent_are_checked_again(
    project: Project, store: Store, maps: Path
) -> None:
    checked = check_folder(maps, project.project_id)
    write_map(maps, "page-001.json", a_map("dist/page-001.html", head={"title": "New"}))
    write_map(maps, "page-002.json", "{")
    write_map(maps, "page-003.json", a_map("dist/other.html"))
    (maps / "page-004.json").unlink()
    outcome = sending.upload_maps(project, store, checked, maps)
    assert outcome.uploaded == outcome.page_count == 7
    refused = {rejected.file for rejected in outcome.checked.rejected}
    assert refused == {"page-002.json", "page-003.json", "page-004.json"}
    page = value(store, f"page:{project.project_id}:{checked.maps[1].page_id}")
    assert page["extraction"]["head"]["title"] == "New"
    assert counts(project, store) == {"queued": 7}


def without_times(project: Project, store: Store) -> str:
    """All that a store holds, but for when it was written and what is named after that."""
    text = json.dumps(everything(store), sort_keys=True)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"batch_\d{8}_\d{6}(_\d+)?", "BATCH", text)
    return re.sub(r"(queue:\w+:\d\d:)\d+", r"\1TIME", text)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_ctrl_c_between_chunks_and_again_leaves_the_records_of_a_clean_upload(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    upload(project, store, maps)
    clean = without_times(project, store)
    store.delete_many([info.key for info in store.scan("")])
    monkeypatch.setattr(sending, "CHUNK_PAGES", 2)

    class InterruptsAfter:
        chunks = 0

        def begin(self, what: str, total: int | None) -> None:
            pass

        def advance(self, steps: int = 1) -> None:
            self.chunks += 1
            if self.chunks == after:
                raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError, match=f"{2 * after} of 10 pages"):
        upload(project, store, maps, progress=InterruptsAfter())
    upload(project, store, maps, batch="latest")
    assert without_times(project, store) == clean


def test_a_dry_run_of_a_batch_that_goes_on_writes_nothing(
    project: Project, store: Store, maps: Path
) -> None:
    batch = upload(project, store, maps).batch_id
    write_map(maps, "new.json", a_map("dist/new.html"))
    before = everything(store)
    outcome = upload(project, store, maps, batch=batch, dry_run=True)
    assert (outcome.uploaded, outcome.skipped, outcome.page_count) == (1, 10, 11)
    assert everything(store) == before


@pytest.fixture
def cut_off(project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch of which four pages of ten are sent."""
    monkeypatch.setattr(lookout, "UPLOAD_SILENT_SECONDS", 0)  # the worker does not wait for it
    return upload_cut_off(project, store, maps, after=1)


def ids(project: Project, store: Store) -> list[str]:
    return [head.batch_id for head in batches.heads(store, project.project_id)]


@pytest.mark.parametrize("changed", [False, True])
def test_an_upload_that_was_killed_goes_on_when_it_is_run_again_as_it_was_typed(
    project: Project, store: Store, maps: Path, cut_off: str, changed: bool
) -> None:
    work(project, store)
    outcome = upload(project, store, maps, changed=changed)
    assert (outcome.batch_id, outcome.resumed) == (cut_off, True)
    assert (outcome.uploaded, outcome.skipped) == (6, 4)
    assert counts(project, store) == {"done": 4, "queued": 6}
    assert ids(project, store) == [cut_off]
    assert work(project, store).done == 6


def test_an_upload_that_was_killed_before_its_last_write_is_ended_by_the_next_one(
    project: Project, store: Store, maps: Path
) -> None:
    upload_cut_off(project, store, maps, before="_close_batch")
    outcome = upload(project, store, maps, changed=True)
    assert (outcome.uploaded, outcome.status) == (0, "queued")


def test_a_batch_that_was_given_up_ends_when_others_take_its_pages(
    project: Project, store: Store, maps: Path, cut_off: str
) -> None:
    write_map(maps, "new.json", a_map("dist/new.html"))
    outcome = upload(project, store, maps)
    assert outcome.batch_id != cut_off
    work(project, store)
    assert [view_batch(project, store, i).is_finished for i in ids(project, store)] == [True, True]
    assert counts(project, store, cut_off) == {"cancelled": 4}
    assert counts(project, store, outcome.batch_id) == {"done": 11}


def test_a_batch_that_goes_on_takes_no_page_back_from_a_later_one(
    project: Project, store: Store, maps: Path, cut_off: str
) -> None:
    others = project.folder / "others"
    write_map(others, "a.json", a_map("dist/page-000.html"))  # which was sent
    write_map(others, "b.json", a_map("dist/page-009.html"))  # which was not
    later = upload(project, store, others).batch_id
    outcome = upload(project, store, maps, batch=cut_off)
    assert (outcome.uploaded, outcome.skipped, outcome.elsewhere) == (5, 3, 2)
    assert counts(project, store, later) == {"queued": 2}
    assert counts(project, store, cut_off) == {"queued": 8, "cancelled": 1}
    work(project, store)
    assert view_batch(project, store, later).status == "completed"


def test_a_batch_whose_pages_are_all_in_a_later_one_takes_none(
    project: Project, store: Store, maps: Path
) -> None:
    first = upload(project, store, maps).batch_id
    second = upload(project, store, maps).batch_id
    before = everything(store)
    with pytest.raises(UsageError, match=str(second)):
        upload(project, store, maps, batch=first)
    assert everything(store) == before


def test_a_page_that_another_process_has_sent_meanwhile_is_left_alone(
    project: Project, store: Store, maps: Path, cut_off: str
) -> None:
    """Two who run a killed upload again at the same moment: no page is queued twice."""

    class Meanwhile:
        has_run = False

        def begin(self, what: str, total: int | None) -> None:
            pass

        def advance(self, steps: int = 1) -> None:
            if not self.has_run:
                self.has_run = True
                upload(project, store, maps)
                work(project, store)

    upload(project, store, maps, progress=Meanwhile())
    assert counts(project, store) == {"done": 10}
    assert view_batch(project, store).tally.attempts == 10


def test_nothing_to_send_in_the_end_leaves_no_completed_batch(
    project: Project, store: Store, maps: Path
) -> None:
    checked = check_folder(maps, project.project_id)
    for path in maps.iterdir():
        path.unlink()
    outcome = sending.upload_maps(project, store, checked, maps)
    assert (outcome.batch_id, outcome.uploaded, len(outcome.checked.rejected)) == (None, 0, 10)
    assert batches.heads(store, project.project_id) == []


def test_edits_whose_upload_was_killed_between_content_and_status_are_sent_again(
    project: Project, store: Store, maps: Path
) -> None:
    """On a store without transactions: the contents have arrived, and nothing says so."""
    first = upload(project, store, maps).batch_id
    work(project, store)
    write_map(maps, "page-003.json", a_map("dist/page-003.html", edited=True))
    second = upload(project, store, maps, changed=True).batch_id
    key = status_key(project.project_id, page_id_for(project.project_id, "dist/page-003.html"))
    entry = store.get(key)
    assert entry is not None
    old = {"status": "done", "batch_id": first, "updated": "2026-01-01T00:00:00.000000Z"}
    store.put(key, json.dumps(old), old)
    head = batches.find(store, project.project_id, second)
    batch = batches.load(store, project.project_id, head.batch_id)
    cut_off = replace(batch, head=replace(head, intent="upload", status="uploading"))
    store.put_many([cut_off.entry()])

    outcome = upload(project, store, maps, changed=True)
    assert (outcome.batch_id, outcome.uploaded, outcome.resumed) == (second, 1, True)
    assert counts(project, store, second) == {"queued": 1}


def test_two_who_go_on_with_one_upload_send_no_page_twice(
    project: Project, store: Store, maps: Path, cut_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one sends and works between this one's plan and its first write."""

    def planned(*args: Any, **options: Any) -> Any:
        plan = plan_upload(*args, **options)
        if not monkeypatched:
            monkeypatched.append(1)
            with project.open_store() as other:
                upload(project, other, maps)
                work(project, other)
        return plan

    monkeypatched: list[int] = []
    monkeypatch.setattr(sending, "plan_upload", planned)
    upload(project, store, maps)
    assert counts(project, store) == {"done": 10}
    assert view_batch(project, store).tally.attempts == 10


def test_a_damaged_record_of_another_batch_does_not_keep_an_upload_from_its_end(
    project: Project, store: Store, maps: Path
) -> None:
    others = project.folder / "others"
    write_map(others, "a.json", a_map("dist/other.html"))
    damaged = upload(project, store, others).batch_id
    upload_cut_off(project, store, maps, before="_close_batch")
    store.put(f"batch:{project.project_id}:{damaged}", "{damaged")
    outcome = upload(project, store, maps)
    assert (outcome.resumed, outcome.status, outcome.page_count) == (True, "queued", 10)


def test_an_upload_that_another_takes_for_one_that_was_cut_off_sends_its_pages_all_the_same(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes all its pages, and ends its batch, before it has sent any."""
    open_batch, batch_ids = sending._open_batch, list[str]()

    def opened(*args: Any) -> str:
        batch_id = open_batch(*args)
        if not batch_ids:
            store.delete_many([batch_key(project.project_id, batch_id)])
        batch_ids.append(batch_id)
        return batch_id

    monkeypatch.setattr(sending, "_open_batch", opened)
    outcome = upload(project, store, maps)
    assert len(batch_ids) == 2
    assert (outcome.uploaded, outcome.status) == (10, "queued")
    assert ids(project, store) == [outcome.batch_id]
    assert counts(project, store) == {"queued": 10}


def test_an_upload_ends_though_a_third_one_has_ended_what_it_found_cut_off(
    project: Project, store: Store, maps: Path, cut_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_batch = sending._open_batch

    def opened(*args: Any) -> str:
        batch_id = open_batch(*args)
        store.delete_many([batch_key(project.project_id, cut_off)])
        return batch_id

    monkeypatch.setattr(sending, "_open_batch", opened)
    write_map(maps, "new.json", a_map("dist/new.html"))
    outcome = upload(project, store, maps)
    assert (outcome.uploaded, outcome.status) == (11, "queued")
