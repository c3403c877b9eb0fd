"""What somebody else's records, messages, settings and processors may do to the Worker: it goes on.

Each of these once stopped it, or had a page worked on that should not be.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from nimbus_tasks.core.keys import page_id_for
from tests.cloud.conftest import Cloud

ONE = "dist/page.html"


def page_of(cloud: Cloud, path: str = ONE) -> str:
    return page_id_for(cloud.project.project_id, path)


def test_queue_items_that_are_none_stop_nobody(cloud: Cloud) -> None:
    """Too long for a status key, without a time, of the next century: all of them go."""
    cloud.set(LAG_SECONDS=1)
    prefix = f"queue:{cloud.project.project_id}:"
    late = f"{prefix}01:20991124080000000000:page_late"
    with cloud.open() as store:
        for key in (
            f"{prefix}{'x' * 470}",
            f"{prefix}zz",
            f"{prefix}01:9:\u202e\x1b[2J",
            f"{prefix}constructor",
            late,
        ):
            store.put(key, "[", None)
    cloud.upload([ONE])
    cloud.until(lambda counts: counts == {"done": 1})
    cloud.tick()
    with cloud.open() as store:
        assert list(store.scan(prefix)) == []


POISON: list[Any] = [
    {"status": "processing", "batch_id": {"a": 1}, "updated": 5, "lease": []},
    {"status": ["queued"], "batch_id": "batch_1"},
    {"status": "done", "batch_id": "batch_1", "completed": "9999", "duration_ms": "1e999"},
    {"status": "\x1b[31m", "attempts": -1, "path": "\x1b[2J" * 9000},
    {"status": "queued", "batch_id": "constructor", "updated": "2026-11-24T08:00:00.000000Z"},
    {"status": "done", "batch_id": "__proto__", "updated": "2026-11-24T08:00:00.000000Z"},
    "a text",
]


def test_statuses_that_are_rubbish_stop_nobody(cloud: Cloud) -> None:
    """With such metadata, without any, and under a key that has no room for others of its page."""
    prefix = f"status:{cloud.project.project_id}:"
    with cloud.open() as store:
        for number, value in enumerate(POISON):
            store.put(f"{prefix}page_bare{number}", json.dumps(value), None)
            metadata = value if isinstance(value, dict) and number != 3 else {"status": 7}
            store.put(f"{prefix}page_told{number}", "[NaN", metadata)
        lapsed = {"status": "processing", "batch_id": "batch_1", "updated": "2020", "lease": "2020"}
        store.put(prefix + "x" * 470, json.dumps(lapsed), lapsed)
    cloud.upload([ONE])
    cloud.until(lambda counts: counts == {"done": 1})
    assert "operations" in cloud.tick() or cloud.tick() == {"idle": True}


def test_a_status_of_no_time_does_not_take_its_page_away(cloud: Cloud) -> None:
    cloud.upload([ONE])
    key = f"status:{cloud.project.project_id}:{page_of(cloud)}"
    with cloud.open() as store:
        entry = store.get(key)
        value = json.loads(entry.value) | {"updated": "yesterday"}
        store.put(key, json.dumps(value), {**entry.metadata, "updated": "yesterday"})
    cloud.until_ended()
    assert cloud.counts() == {"done": 1}


@pytest.mark.parametrize("metadata", [{"batch_id": "b", "theirs": "x" * 980}, {}])
def test_a_page_of_any_metadata_ends(cloud: Cloud, metadata: dict[str, Any]) -> None:
    """There may be no room for ours; theirs are carried along."""
    cloud.upload([ONE])
    key = f"page:{cloud.project.project_id}:{page_of(cloud)}"
    with cloud.open() as store:
        cloud.write(key, store.get(key).value, metadata)
    cloud.until(lambda counts: counts == {"done": 1})
    with cloud.open() as store:
        entry = store.get(key)
    assert json.loads(entry.value)["optimization"] == {"title": "better"}
    assert entry.metadata.items() >= metadata.items()


def test_messages_that_are_none_are_let_go(cloud: Cloud) -> None:
    """And change no page, whatever they name."""
    cloud.set(hold=True)
    cloud.upload([ONE])
    project, page = cloud.project.project_id, page_of(cloud)
    claim, [message] = {"claim": "c"}, cloud.messages()
    rubbish: list[Any] = [{}, claim, {"item": 5, **claim}, {"item": "queue:", **claim}]
    rubbish += [{"item": f"{place}:{project}:{page}", **claim} for place in ("status", "queue")]
    rubbish += [{**message, "claim": "../" * 200}, {"claim": [message["item"]]}]
    cloud.send(*rubbish, {"item": f"queue:other:{page}", **claim})
    cloud.set()
    assert cloud.counts() == {"queued": 1}
    cloud.until_ended()
    assert cloud.counts() == {"done": 1}
    assert cloud.service.asked == {ONE: 1}
    assert cloud.statuses()[ONE]["attempts"] == 1


def test_a_processor_that_says_nothing_keeps_its_lease(cloud: Cloud) -> None:
    cloud.set(odd="silent", LEASE_SECONDS=1)
    cloud.upload([ONE])
    cloud.until_ended()
    [status] = cloud.statuses().values()
    assert (status["status"], status["attempts"], status.get("lapses")) == ("done", 1, None)


def test_an_error_that_cannot_be_put_in_words_is_one(cloud: Cloud) -> None:
    cloud.set(odd="wordless")
    cloud.upload([ONE])
    cloud.until_ended()
    error = cloud.statuses()[ONE]["error"]
    assert "cannot be shown" in error["message"] + error["code"]


def test_a_processor_that_empties_the_page_empties_its_copy(cloud: Cloud) -> None:
    cloud.set(odd="greedy")
    cloud.upload([ONE])
    cloud.until_ended()
    stored = json.loads(cloud.value(f"page:{cloud.project.project_id}:{page_of(cloud)}"))
    assert (stored["source_path"], stored["optimization"]) == (ONE, {"mine": True})


def test_pages_whose_messages_wait_are_cancelled(cloud: Cloud) -> None:
    """Also where a consumer has them that sees the cancel before the pages: they cost money."""
    batch = cloud.upload([ONE, "dist/b.html"])
    messages = cloud.messages()
    with cloud.open() as store:
        entry = store.get(f"batch:{cloud.project.project_id}:{batch}")
        value = json.loads(entry.value) | {"intent": "cancel"}
        store.put(entry.key, json.dumps(value), {**entry.metadata, "intent": "cancel"})
    cloud.send(messages[0])
    cloud.until(lambda counts: counts == {"cancelled": 1, "queued": 1}, ticks=False)
    cloud.run("nimbus.batch.cancel", f"--batch={batch}")
    cloud.send(messages[1])
    cloud.until(lambda counts: counts == {"cancelled": 2}, ticks=False)
    assert not cloud.service.asked
    cloud.tick()
    assert cloud.document("nimbus.batch.list")["batches"][0]["status"] == "cancelled"


def test_settings_that_are_no_numbers_count_as_left_out(cloud: Cloud) -> None:
    names = ("LEASE_SECONDS", "PAGE_SECONDS", "OPERATIONS", "BATCH_SIZE", "CONCURRENCY")
    cloud.set(**dict.fromkeys(names, ""), MAX_ATTEMPTS="many")
    cloud.upload([ONE])
    cloud.until_ended()
    assert cloud.counts() == {"done": 1}


def test_what_a_tick_remembers_may_be_rubbish(cloud: Cloud) -> None:
    key = f"cloud:{cloud.project.project_id}:tick"
    rubbish = {"until": 1e17, "quiet": 1e17, "sent": {"a": "b"}, "pass": {"cursor": "no"}}
    cloud.upload([ONE])
    with cloud.open() as store:
        store.put(key, json.dumps(rubbish), None)
    cloud.until_ended()
    assert cloud.counts() == {"done": 1}


def test_a_batch_that_is_called_over_while_a_page_is_open_is_opened_again(cloud: Cloud) -> None:
    """In its metadata first: the value goes through as it is."""
    key = f"batch:{cloud.project.project_id}:{cloud.upload([ONE])}"
    with cloud.open() as store:
        value, metadata = store.get(key).value, store.get(key).metadata
        store.put(key, value, {**metadata, "status": "completed"})
    cloud.service.gate.clear()
    assert cloud.tick()["snapshots"] == 1
    with cloud.open() as store:
        assert (store.get(key).value, store.get(key).metadata["status"]) == (value, "queued")
    cloud.service.gate.set()
    cloud.until_ended()
    [page] = json.loads(cloud.value(key))["pages"].values()
    assert page["status"] == "done"


def test_an_upload_that_nobody_goes_on_with_costs_nothing(cloud: Cloud) -> None:
    batch = cloud.upload([ONE])
    cloud.until_ended()
    key = f"batch:{cloud.project.project_id}:{batch}"
    with cloud.open() as store:
        entry = store.get(key)
        value = json.loads(entry.value) | {"intent": "upload", "status": "uploading"}
        metadata = {**entry.metadata, "intent": "upload", "status": "uploading"}
        store.put(key, json.dumps(value), metadata)
    cloud.tick()
    assert cloud.tick() == {"idle": True}
    cloud.upload(["dist/other.html"])  # what is queued is seen at once
    assert cloud.tick()["sent"] == 1


def test_batches_without_metadata_are_read_a_few_a_tick(cloud: Cloud) -> None:
    """They are the seed's, and each is read whole; then it has a snapshot and is at rest."""
    with cloud.open() as store:
        for number in range(30):
            key = f"batch:{cloud.project.project_id}:batch_20250101_0000{number:02d}"
            store.put(key, '{"status": "processing", "pages": {}}', None)
    assert cloud.tick()["snapshots"] == 20
    cloud.tick()
    assert cloud.tick() == {"idle": True}


def test_the_secret_in_an_address_is_in_no_error(cloud: Cloud) -> None:
    cloud.set(PROCESSOR_URL="http://u:hush@127.0.0.1:9/?key=hush")
    cloud.upload([ONE])
    cloud.tick()

    def says_what_it_waits_for(_: dict[str, int]) -> bool:
        step = cloud.statuses()[ONE].get("processing", {}).get("current_step") or ""
        return step.startswith("waits: cannot reach PROCESSOR_URL")

    cloud.until(says_what_it_waits_for, ticks=False)
    assert "hush" not in json.dumps(cloud.statuses())
