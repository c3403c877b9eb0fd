"""What every store must do; a store's own test module subclasses :class:`StoreSuite`.

A subclass gives two fixtures: ``store``, open and empty, and ``reopen``, which opens another handle
on the same data, as another process would have it.
"""

from __future__ import annotations

from nimbus_tasks.kv.store import Store
from tests.kv.store_suite.entries import Entries
from tests.kv.store_suite.helpers import VALUES, BrokenOffError, Reopen, fill, keys
from tests.kv.store_suite.listings import Listings
from tests.kv.store_suite.transactions import Transactions

__all__ = [
    "VALUES",
    "BrokenOffError",
    "IsolatedStoreSuite",
    "Reopen",
    "StoreSuite",
    "fill",
    "keys",
]


class StoreSuite(Entries, Listings, Transactions):
    """The tests. Their store is a fixture of the subclass."""


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
