"""What every store does with writes and reads that belong together, and at its end."""

from __future__ import annotations

from contextlib import suppress

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.store import Entry, KeyInfo, Store
from tests.kv.store_suite.helpers import BrokenOffError, Reopen, broken_off, fill, keys


class Transactions:
    """Part of :class:`~tests.kv.store_suite.StoreSuite`."""

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

    def test_a_store_is_closed_by_the_end_of_its_block(self, store: Store, reopen: Reopen) -> None:
        with reopen() as other:
            fill(other, "a")

        with pytest.raises(StoreError):
            other.get("a")
        assert keys(store, "a") == ["a"]
