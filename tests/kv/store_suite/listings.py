"""What every store lists: which keys, in which order, how many."""

from __future__ import annotations

import pytest

from nimbus_tasks.kv.store import Store
from tests.kv.store_suite.helpers import fill, keys


class Listings:
    """Part of :class:`~tests.kv.store_suite.StoreSuite`."""

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
