"""What every store does with values, with their metadata and with what is too large."""

from __future__ import annotations

from typing import Any

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.store import (
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_VALUE_BYTES,
    Entry,
    KeyInfo,
    Store,
)
from tests.kv.store_suite.helpers import METADATA, VALUES, Reopen, fill, keys, metadata_of


class Entries:
    """Part of :class:`~tests.kv.store_suite.StoreSuite`."""

    def test_what_was_put_is_got(self, store: Store) -> None:
        store.put("a", '{"n": 1}', {"small": True})

        assert store.get("a") == Entry("a", '{"n": 1}', {"small": True})

    def test_another_handle_reads_what_was_put(self, store: Store, reopen: Reopen) -> None:
        store.put("a", "1", {"small": True})

        assert reopen().get("a") == Entry("a", "1", {"small": True})

    def test_a_key_that_is_not_there_is_none(self, store: Store) -> None:
        fill(store, "ab")

        assert store.get("a") is None
        assert store.get("abc") is None

    def test_many_are_put_and_got_at_once_and_those_not_there_are_left_out(
        self, store: Store
    ) -> None:
        fill(store, "a", "b", "c")

        found = store.get_many(["c", "nobody", "a"])

        assert found == {"a": Entry("a", '"a"'), "c": Entry("c", '"c"')}

    def test_a_key_that_is_asked_for_twice_is_got_once(self, store: Store) -> None:
        fill(store, "a")

        assert list(store.get_many(["a", "a"])) == ["a"]

    def test_more_keys_than_go_into_one_request_are_put_got_and_deleted(self, store: Store) -> None:
        many = [f"key:{number:05d}" for number in range(2_345)]
        store.put_many(Entry(key, f'"{key}"', {"key": key}) for key in many)

        found = store.get_many(many)

        assert len(found) == len(many)
        assert all(found[key] == Entry(key, f'"{key}"', {"key": key}) for key in many)
        assert keys(store, "key:") == many
        store.delete_many(many[1:])
        assert keys(store, "key:") == many[:1]

    def test_an_iterator_is_as_good_as_a_list(self, store: Store) -> None:
        store.put_many(iter([Entry("k:a", "1"), Entry("k:b", "2")]))

        assert store.get_many(iter(["k:a", "k:b"])).keys() == {"k:a", "k:b"}
        store.delete_many(iter(["k:a"]))
        assert keys(store, "k:") == ["k:b"]

    def test_nothing_is_put_got_and_deleted_without_fault(self, store: Store) -> None:
        store.put_many([])
        store.delete_many([])

        assert store.get_many([]) == {}

    def test_a_value_that_is_put_again_is_replaced(self, store: Store) -> None:
        store.put("a", "1")
        store.put("a", "2")

        assert store.get("a") == Entry("a", "2")
        assert keys(store, "a") == ["a"]

    def test_of_a_key_put_twice_at_once_the_last_one_counts(self, store: Store) -> None:
        store.put_many([Entry("a", "1", {"n": 1}), Entry("b", "0"), Entry("a", "2", {"n": 2})])

        assert store.get("a") == Entry("a", "2", {"n": 2})

    def test_deleted_keys_are_gone_with_their_metadata(self, store: Store) -> None:
        store.put("a", "1", {"n": 1})
        fill(store, "b")

        store.delete_many(["a", "nobody"])

        assert store.get("a") is None
        assert store.head("a") is None
        assert keys(store, "a") == []
        assert store.get("b") is not None
        store.put("a", "2")
        assert store.get("a") == Entry("a", "2", None)

    @pytest.mark.parametrize("value", VALUES)
    def test_a_value_comes_back_as_it_was(self, store: Store, reopen: Reopen, value: str) -> None:
        store.put("a", value)

        assert store.get("a") == Entry("a", value)
        assert reopen().get("a") == Entry("a", value)

    def test_a_value_of_megabytes_comes_back_as_it_was(self, store: Store) -> None:
        value = '"' + "é😀\\n" * 300_000 + '"'
        store.put("a", value, {"n": 1})

        entry = store.get("a")

        assert entry is not None
        assert entry.value == value
        assert store.head("a") == KeyInfo("a", {"n": 1})

    @pytest.mark.parametrize(
        "key",
        [
            "status:proj_0123456789ab:page_0123456789ab",
            "with space/slash?query#hash&more=1+2",
            "100%",
            "%2F",
            "é😀",
            "quote\"'`;--",
            "_%*[]",
            "...",
            "UPPER",
        ],
    )
    def test_a_key_of_any_characters_is_a_key(self, store: Store, key: str) -> None:
        store.put(key, "1", {"n": 1})

        assert store.get(key) == Entry(key, "1", {"n": 1})
        assert store.head(key) == KeyInfo(key, {"n": 1})
        assert keys(store, key) == [key]
        store.delete_many([key])
        assert store.get(key) is None

    def test_keys_that_differ_in_case_or_composition_are_two(self, store: Store) -> None:
        names = ["k:E\u0301", "k:e\u0301", "k:\u00e9"]
        fill(store, *names)

        assert keys(store, "k:") == names

    @pytest.mark.parametrize("metadata", METADATA)
    def test_metadata_comes_back_with_the_value_and_in_a_listing(
        self, store: Store, metadata: dict[str, Any]
    ) -> None:
        store.put("a", "1", metadata)

        assert store.get("a") == Entry("a", "1", metadata)
        assert list(store.scan("a")) == [KeyInfo("a", metadata)]
        assert store.head("a") == KeyInfo("a", metadata)

    def test_metadata_is_replaced_with_the_value_and_not_merged(self, store: Store) -> None:
        store.put("a", "1", {"old": 1, "both": 1})
        store.put("a", "2", {"both": 2})

        assert store.get("a") == Entry("a", "2", {"both": 2})

    def test_a_write_without_metadata_drops_what_was_there(self, store: Store) -> None:
        store.put("a", "1", {"old": 1})
        store.put("a", "2")

        assert store.get("a") == Entry("a", "2", None)
        assert store.head("a") == KeyInfo("a", None)

    def test_a_listing_tells_keys_with_and_without_metadata_apart(self, store: Store) -> None:
        store.put_many([Entry("k:a", "1", {"n": 1}), Entry("k:b", "2"), Entry("k:c", "3", {})])

        assert list(store.scan("k:")) == [
            KeyInfo("k:a", {"n": 1}),
            KeyInfo("k:b", None),
            KeyInfo("k:c", {}),
        ]

    def test_the_head_of_a_key_is_its_metadata(self, store: Store) -> None:
        store.put("a", "1", {"n": 1})

        assert store.head("a") == KeyInfo("a", {"n": 1})

    def test_the_head_is_of_that_key_and_not_of_one_that_begins_alike(self, store: Store) -> None:
        fill(store, "ab", "a!")

        assert store.head("a") is None
        fill(store, "a")
        assert store.head("a") == KeyInfo("a", None)

    def test_a_key_of_the_longest_length_is_kept(self, store: Store) -> None:
        key = "k" * MAX_KEY_BYTES
        fill(store, key)

        assert keys(store, "k") == [key]

    def test_a_key_that_is_too_long_is_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match=str(MAX_KEY_BYTES)) as error:
            fill(store, "k" * (MAX_KEY_BYTES + 1))

        assert error.value.exit_code == 5
        assert len(error.value.message) < 200
        assert keys(store, "k") == []

    def test_the_length_of_a_key_is_counted_in_bytes(self, store: Store) -> None:
        fill(store, "é" * (MAX_KEY_BYTES // 2))

        with pytest.raises(StoreError, match=str(MAX_KEY_BYTES)):
            fill(store, "é" * (MAX_KEY_BYTES // 2) + "k")

    def test_metadata_of_the_largest_size_is_kept(self, store: Store) -> None:
        metadata = metadata_of(MAX_METADATA_BYTES)
        store.put("a", "1", metadata)

        assert store.head("a") == KeyInfo("a", metadata)

    def test_metadata_that_is_too_large_is_refused_and_its_key_named(self, store: Store) -> None:
        store.put("status:page_a", "1", {"old": 1})

        with pytest.raises(StoreError, match="status:page_a"):
            store.put("status:page_a", "2", metadata_of(MAX_METADATA_BYTES + 1))
        assert store.get("status:page_a") == Entry("status:page_a", "1", {"old": 1})

    def test_a_value_that_is_too_large_is_refused_and_its_key_named(self, store: Store) -> None:
        with pytest.raises(StoreError, match="page:page_a"):
            store.put("page:page_a", "x" * (MAX_VALUE_BYTES + 1))
        assert store.get("page:page_a") is None

    def test_the_size_of_a_value_is_counted_in_bytes(self, store: Store) -> None:
        with pytest.raises(StoreError, match="page:page_a"):
            store.put("page:page_a", "é" * (MAX_VALUE_BYTES // 2 + 1))

    def test_text_that_is_no_text_is_refused(self, store: Store) -> None:
        """Half a surrogate pair can be in a JSON text, and in no UTF-8."""
        with pytest.raises(StoreError):
            store.put("a", '"\ud83d"')
        with pytest.raises(StoreError):
            store.put("a\ud83d", "1")
        assert keys(store, "a") == []

    def test_a_write_with_one_entry_that_is_refused_writes_none(self, store: Store) -> None:
        with pytest.raises(StoreError):
            fill(store, "a", "k" * (MAX_KEY_BYTES + 1), "b")

        assert keys(store, "a") == []
        assert keys(store, "b") == []
