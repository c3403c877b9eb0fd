"""What every store must do; a store's own test module subclasses :class:`StoreSuite`.

A subclass gives two fixtures: ``store``, open and empty, and ``reopen``, which opens another handle
on the same data, as another process would have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.store import (
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_VALUE_BYTES,
    Entry,
    KeyInfo,
    KeyValues,
    Store,
)

Reopen = Callable[[], Store]

#: Values as JSON text, of every kind that gets lost in conversions.
VALUES = [
    "{}",
    '"text"',
    "1e3",
    '{ "spaces" :  "are kept" }\n',
    '{"b":1,"a":2}',
    '"é😀\u2028\u00a0"',
    r'"\u0000\ud83d\ude00\\"',
    "null",
    "not JSON at all: a store does not look into values",
    "'; DROP TABLE keys; --",
    "a,b\r\nc\td",
]
METADATA: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"text": "é😀\n\"'", "none": None, "yes": True, "float": 0.5, "big": 2**53 - 1},
    {"nested": {"list": [1, [2, {}]]}, "": "empty name"},
]


class BrokenOffError(Exception):
    """Raised by a test in the middle of a transaction."""


def fill(store: KeyValues, *keys: str) -> None:
    """Write those keys, each with its own name as value."""
    store.put_many([Entry(key, f'"{key}"') for key in keys])


def keys(store: KeyValues, prefix: str, limit: int | None = None) -> list[str]:
    """The keys that a scan finds, in its order."""
    return [info.key for info in store.scan(prefix, limit=limit)]


def break_off(broken: type[BaseException]) -> NoReturn:
    """End in an exception."""
    raise broken


@contextmanager
def broken_off(store: Store, broken: type[BaseException] = BrokenOffError) -> Iterator[KeyValues]:
    """A transaction that ends in an exception, which comes through."""
    try:
        with store.transaction() as tx:
            yield tx
            break_off(broken)
    except broken:
        return
    pytest.fail("the transaction has swallowed the exception")


def metadata_of(size: int) -> dict[str, str]:
    """Metadata that takes so many bytes serialised."""
    return {"a": "x" * (size - len('{"a":""}'))}


class StoreSuite:
    """The tests. Their store is a fixture of the subclass."""

    # --- reading and writing ---

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

    # --- metadata ---

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

    # --- listing ---

    def test_a_scan_finds_the_keys_that_begin_with_the_prefix_and_no_others(
        self, store: Store
    ) -> None:
        fill(store, "a", "a:", "a:b", "a:b2", "a:bc", "a:c", "a;", "a9", "b", "A:b", "aa:b")

        assert keys(store, "a:") == ["a:", "a:b", "a:b2", "a:bc", "a:c"]
        assert keys(store, "a:b") == ["a:b", "a:b2", "a:bc"]
        assert keys(store, "a:b2") == ["a:b2"]
        assert keys(store, "a:d") == []

    def test_a_prefix_is_taken_as_it_is_and_never_as_a_pattern(self, store: Store) -> None:
        fill(store, "a%b", "a_b", "a*b", "axb", "a[x]b")

        for prefix in ("a%", "a_", "a*", "a[x]"):
            assert keys(store, prefix) == [f"{prefix}b"]

    def test_a_scan_is_in_the_byte_order_of_utf_8(self, store: Store) -> None:
        # UTF-16, as JavaScript sorts by it, has U+1F600 before U+FF21.
        names = ["k:Z", "k:_", "k:a", "k:é", "k:\uff21", "k:\U0001f600", "k:0", "k:", "k:-", "k:10"]
        fill(store, *names)

        assert keys(store, "k:") == sorted(names, key=lambda key: key.encode())

    def test_a_scan_of_more_than_one_page_is_whole_and_in_order(self, store: Store) -> None:
        many = [f"k:{number:05d}" for number in range(2_345)]
        fill(store, *reversed(many))

        assert keys(store, "k:") == many

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 1000])
    def test_a_scan_stops_at_its_limit(self, store: Store, limit: int) -> None:
        fill(store, "k:a", "k:b", "k:c", "other")

        assert keys(store, "k:", limit) == ["k:a", "k:b", "k:c"][:limit]

    def test_a_limit_of_more_than_a_page_is_kept_to_the_key(self, store: Store) -> None:
        fill(store, *(f"k:{number:05d}" for number in range(1_300)))

        assert len(keys(store, "k:", 1_234)) == 1_234

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert keys(store, "k:") == []

    def test_an_empty_prefix_lists_everything(self, store: Store) -> None:
        fill(store, "b", "a", "é")

        assert keys(store, "") == ["a", "b", "é"]

    def test_a_prefix_may_end_in_any_character(self, store: Store) -> None:
        for last in ("\x7f", "\u07ff", "\ud7ff", "\uffff", "\U0010ffff"):
            fill(store, f"k{last}", f"k{last}a", "j", "l", "k")

            assert keys(store, f"k{last}") == [f"k{last}", f"k{last}a"]

    def test_a_scan_that_is_broken_off_leaves_the_store_usable(self, store: Store) -> None:
        many = [f"k:{number:05d}" for number in range(1_500)]
        fill(store, *many)

        for info in store.scan("k:"):
            assert info.key == many[0]
            break

        store.delete_many(many)
        assert keys(store, "k:") == []

    def test_two_scans_can_be_read_at_once(self, store: Store) -> None:
        fill(store, "a:1", "a:2", "b:1", "b:2")

        pairs = zip(store.scan("a:"), store.scan("b:"), strict=True)

        assert [(a.key, b.key) for a, b in pairs] == [("a:1", "b:1"), ("a:2", "b:2")]

    def test_values_can_be_read_while_a_scan_is(self, store: Store) -> None:
        fill(store, "a:1", "a:2", "a:3")

        entries = [store.get(info.key) for info in store.scan("a:")]

        assert [entry and entry.key for entry in entries] == ["a:1", "a:2", "a:3"]

    # --- head ---

    def test_the_head_of_a_key_is_its_metadata(self, store: Store) -> None:
        store.put("a", "1", {"n": 1})

        assert store.head("a") == KeyInfo("a", {"n": 1})

    def test_the_head_is_of_that_key_and_not_of_one_that_begins_alike(self, store: Store) -> None:
        fill(store, "ab", "a!")

        assert store.head("a") is None
        fill(store, "a")
        assert store.head("a") == KeyInfo("a", None)

    # --- limits ---

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

    # --- transactions ---

    def test_a_transaction_is_written_when_it_ends(self, store: Store, reopen: Reopen) -> None:
        fill(store, "old")
        with store.transaction() as tx:
            tx.put("a", "1", {"n": 1})
            tx.put_many([Entry("b", "2")])
            tx.delete_many(["old"])

        for handle in (store, reopen()):
            assert handle.get("a") == Entry("a", "1", {"n": 1})
            assert keys(handle, "b") == ["b"]
            assert handle.get("old") is None

    def test_a_transaction_reads_what_was_there_before(self, store: Store) -> None:
        store.put("a", "1", {"n": 1})

        with store.transaction() as tx:
            assert tx.get("a") == Entry("a", "1", {"n": 1})
            assert tx.head("a") == KeyInfo("a", {"n": 1})
            assert keys(tx, "a") == ["a"]

    def test_an_empty_transaction_changes_nothing(self, store: Store) -> None:
        fill(store, "a")
        with store.transaction():
            pass

        assert keys(store, "a") == ["a"]

    def test_transactions_follow_one_another(self, store: Store) -> None:
        for number in range(5):
            with store.transaction() as tx:
                entry = tx.get("n")
                assert (entry and entry.value) == (str(number - 1) if number else None)
                tx.put("n", str(number))

    @pytest.mark.parametrize("broken", [BrokenOffError, KeyboardInterrupt, GeneratorExit])
    def test_a_transaction_that_is_broken_off_leaves_everything_as_it_was(
        self, store: Store, reopen: Reopen, broken: type[BaseException]
    ) -> None:
        store.put_many([Entry("a", "1", {"n": 1}), Entry("b", "1")])

        with broken_off(store, broken) as tx:
            tx.put("a", "2")
            tx.put("c", "2")
            tx.delete_many(["b"])

        for handle in (store, reopen()):
            assert handle.get("a") == Entry("a", "1", {"n": 1})
            assert keys(handle, "b") == ["b"]
            assert handle.get("c") is None

    def test_after_a_transaction_that_was_broken_off_the_next_one_works(self, store: Store) -> None:
        with broken_off(store) as tx:
            tx.put("a", "1")
        with store.transaction() as tx:
            tx.put("b", "2")

        assert store.get_many(["a", "b"]) == {"b": Entry("b", "2")}

    def test_a_transaction_sees_its_own_writes(self, store: Store) -> None:
        fill(store, "old", "k:3")
        with store.transaction() as tx:
            tx.put("k:1", "1", {"n": 1})
            tx.put("k:2", "2")
            tx.delete_many(["old", "k:2"])

            assert tx.get("k:1") == Entry("k:1", "1", {"n": 1})
            assert tx.get("old") is None
            assert tx.head("k:1") == KeyInfo("k:1", {"n": 1})
            assert keys(tx, "k:") == ["k:1", "k:3"]

    def test_nobody_else_sees_a_transaction_before_its_end(
        self, store: Store, reopen: Reopen
    ) -> None:
        fill(store, "k:a")
        other = reopen()
        with store.transaction() as tx:
            tx.put("k:b", "1")
            tx.delete_many(["k:a"])
            assert keys(other, "k:") == ["k:a"]

        assert keys(other, "k:") == ["k:b"]

    def test_a_write_through_the_store_belongs_to_its_transaction(
        self, store: Store, reopen: Reopen
    ) -> None:
        other = reopen()
        with broken_off(store):
            store.put("k:a", "1")
            store.put_many([Entry("k:b", "1")])
            assert keys(store, "k:") == ["k:a", "k:b"]
            assert keys(other, "k:") == []

        assert keys(store, "k:") == []

    def test_a_transaction_within_one_that_is_broken_off_goes_with_it(
        self, store: Store, reopen: Reopen
    ) -> None:
        other = reopen()
        with broken_off(store):
            with store.transaction() as inner:
                inner.put("k:a", "1")
            assert keys(other, "k:") == []

        assert keys(store, "k:") == []

    def test_a_transaction_within_one_is_written_with_it(
        self, store: Store, reopen: Reopen
    ) -> None:
        other = reopen()
        with store.transaction():
            with store.transaction() as inner:
                inner.put("k:a", "1")
            assert keys(other, "k:") == []
            store.put("k:b", "1")

        assert keys(other, "k:") == ["k:a", "k:b"]

    # --- snapshots ---

    def test_a_snapshot_reads_what_is_there(self, store: Store) -> None:
        store.put("a", "1", {"n": 1})

        with store.snapshot() as reading:
            assert reading.get("a") == Entry("a", "1", {"n": 1})
            assert reading.head("a") == KeyInfo("a", {"n": 1})
            assert keys(reading, "a") == ["a"]

        store.put("a", "2")
        assert store.get("a") == Entry("a", "2")

    def test_a_snapshot_within_a_transaction_sees_its_writes(self, store: Store) -> None:
        with store.transaction() as tx:
            tx.put("k:a", "1")
            with store.snapshot() as reading:
                assert reading.get("k:a") == Entry("k:a", "1")
            tx.put("k:b", "1")

        assert keys(store, "k:") == ["k:a", "k:b"]

    def test_a_snapshot_within_a_snapshot_sees_the_same(self, store: Store) -> None:
        fill(store, "a")
        with store.snapshot():
            with store.snapshot() as inner:
                assert keys(inner, "a") == ["a"]
            assert keys(store, "a") == ["a"]

    def test_a_snapshot_that_is_broken_off_leaves_the_store_usable(self, store: Store) -> None:
        with suppress(BrokenOffError), store.snapshot() as reading:
            assert reading.get("a") is None
            raise BrokenOffError

        fill(store, "a")
        assert keys(store, "a") == ["a"]

    # --- closing ---

    def test_a_store_is_closed_by_the_end_of_its_block(self, store: Store, reopen: Reopen) -> None:
        with reopen() as other:
            fill(other, "a")

        with pytest.raises(StoreError):
            other.get("a")
        assert keys(store, "a") == ["a"]


class IsolatedStoreSuite(StoreSuite):
    """What is asked as well of a store whose snapshots keep others' writes out."""

    def test_the_reads_of_a_snapshot_see_one_state(self, store: Store, reopen: Reopen) -> None:
        fill(store, "k:a", "k:b")
        other = reopen()
        with store.snapshot() as reading:
            assert keys(reading, "k:a") == ["k:a"]
            other.delete_many(["k:b"])
            other.put("k:c", "1")

            assert keys(reading, "k:") == ["k:a", "k:b"]
            assert reading.get("k:c") is None

        assert keys(store, "k:") == ["k:a", "k:c"]
