"""The suite of every store on Cloudflare's own local server, each test in a namespace of its own.

It differs from production: no metadata in bulk reads, no throttling, no lag. Those are tested on
the tests' own server; here it is that requests and answers are what Cloudflare's code takes and
gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nimbus_tasks.kv.cloudflare.journal import KEPT_SECONDS
from nimbus_tasks.kv.store import Entry, Store
from tests.kv.store_suite import VALUES, Reopen, StoreSuite, keys
from tests.kv.test_cloudflare_store import Open, Time, opening

if TYPE_CHECKING:
    from tests.wrangler.server import Wrangler

pytest_plugins = ["tests.wrangler.server"]


@pytest.fixture
def time() -> Time:
    """Nobody waits for the one write a second."""
    return Time()


@pytest.fixture
def connect(wrangler: Wrangler, tmp_path: Path, time: Time) -> Iterator[Open]:
    """Opens stores on one namespace, empty at first: of one directory each, by its name."""
    namespace = wrangler.new_namespace()
    with opening(wrangler.prefix, namespace, tmp_path, time) as another:
        yield another


@pytest.fixture
def store(connect: Open) -> Store:
    return connect()


class TestSuite(StoreSuite):
    """What every store must do."""

    @pytest.fixture
    def reopen(self, connect: Open) -> Reopen:
        """Another directory: what it reads is what the server has, and no memory of ours."""
        return lambda: connect("there")


@pytest.mark.parametrize("directory", ["here", "there"])
def test_everything_comes_back_when_nothing_of_it_is_remembered(
    connect: Open, time: Time, directory: str
) -> None:
    """The suite reads its own writes, which the journal answers; this is what the server has."""
    written = {
        f"value:{number:02d}": Entry(f"value:{number:02d}", value, {"n": number, "é": "😀"})
        for number, value in enumerate(VALUES)
    }
    connect().put_many(written.values())
    time.now += KEPT_SECONDS + 1

    store = connect(directory)

    assert store.get_many(written) == written
    assert keys(store, "value:") == list(written)
    assert [info.metadata for info in store.scan("value:")] == [
        entry.metadata for entry in written.values()
    ]
