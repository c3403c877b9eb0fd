"""What happened to a page, attempt after attempt; nothing is erased."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from nimbus_tasks.core.logs import LogEntry, append_logs, log_entry, read_logs
from nimbus_tasks.kv.store import Entry, Store

PROJECT, PAGE = "proj_0123456789ab", "page_a"
KEY = f"logs:{PROJECT}:{PAGE}"
NOW = "2026-11-24T12:00:00.000000Z"


def note(message: str) -> dict[str, Any]:
    return log_entry(NOW, "read", message)


def append(store: Store, *messages: str, page_id: str = PAGE) -> None:
    """Append a note for each of the messages and store the record."""
    store.put_many(append_logs(store, PROJECT, {page_id: [note(m) for m in messages]}))


def messages(store: Store, page_id: str = PAGE) -> list[str]:
    """The messages of a page's log."""
    return [entry["message"] for entry in read_logs(store.get(f"logs:{PROJECT}:{page_id}"))]


def test_an_entry_has_the_fields_of_the_wire_contract() -> None:
    entry = log_entry(NOW, "read", "one", level="error", data={"code": "bad"})

    assert entry == {
        "timestamp": NOW,
        "level": "error",
        "step": "read",
        "message": "one",
        "data": {"code": "bad"},
    }


def test_an_entry_leaves_out_what_there_is_not() -> None:
    assert log_entry(NOW, "read", "one", data={}) == {
        "timestamp": NOW,
        "level": "info",
        "step": "read",
        "message": "one",
    }


def test_the_data_of_an_entry_is_a_copy() -> None:
    data = {"attempt": 1}
    entry = log_entry(NOW, "read", "one", data=data)
    data["attempt"] = 2

    assert entry["data"] == {"attempt": 1}


def test_the_first_entries_make_a_record(store: Store) -> None:
    append(store, "one", "two")

    entry = store.get(KEY)
    assert entry is not None
    assert json.loads(entry.value) == {"page_id": PAGE, "entries": [note("one"), note("two")]}
    assert entry.metadata == {"entries": 2}


def test_a_later_attempt_erases_nothing(store: Store) -> None:
    append(store, "first attempt")
    append(store, "second attempt")
    append(store, "third attempt")

    entry = store.get(KEY)
    assert messages(store) == ["first attempt", "second attempt", "third attempt"]
    assert entry is not None
    assert entry.metadata == {"entries": 3}


def test_each_page_has_its_own_log(store: Store) -> None:
    append(store, "old of b", page_id="page_b")
    new: dict[str, Sequence[LogEntry]] = {PAGE: [note("new of a")], "page_b": [note("new of b")]}

    store.put_many(append_logs(store, PROJECT, new))

    assert messages(store) == ["new of a"]
    assert messages(store, "page_b") == ["old of b", "new of b"]


def test_appending_writes_nothing_by_itself(store: Store) -> None:
    append_logs(store, PROJECT, {PAGE: [note("one")]})

    assert store.get(KEY) is None


def test_the_entries_and_fields_that_a_worker_of_the_seed_wrote_are_kept(store: Store) -> None:
    theirs = {"timestamp": "2024-09-02T13:45:00.250Z", "message": "theirs", "colour": "red"}
    store.put(KEY, json.dumps({"page_id": PAGE, "entries": [theirs], "source": "worker"}))

    append(store, "ours")

    entry = store.get(KEY)
    assert entry is not None
    assert json.loads(entry.value) == {
        "page_id": PAGE,
        "entries": [theirs, note("ours")],
        "source": "worker",
    }


@pytest.mark.parametrize("value", ["", "{", "null", "[1]", '{"entries": 5}', "{}"])
def test_a_log_that_cannot_be_read_does_not_lose_the_new_entries(store: Store, value: str) -> None:
    store.put(KEY, value)

    append(store, "one")

    assert messages(store) == ["one"]


@pytest.mark.parametrize("value", ["", "{", "null", "[1]", "{}", '{"entries": {"a": 1}}'])
def test_a_log_that_cannot_be_read_has_no_entries(value: str) -> None:
    assert read_logs(Entry(KEY, value)) == []


def test_a_page_without_a_log_has_no_entries() -> None:
    assert read_logs(None) == []


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_number_that_is_no_json_in_an_old_entry_does_not_stop_the_new_ones(
    store: Store, number: str
) -> None:
    store.put(KEY, f'{{"entries": [{{"message": "old", "data": {{"score": {number}}}}}]}}')

    append(store, "one")

    assert messages(store)[-1] == "one"
