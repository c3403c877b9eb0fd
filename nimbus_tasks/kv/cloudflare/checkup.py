"""A namespace put to the test for ``nimbus.doctor``: everything that the tasks do to it, once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

from nimbus_tasks.kv.cloudflare.client import KVClient
from nimbus_tasks.kv.store import Entry


class Step(NamedTuple):
    """Something that was tried. ``lags``: it went well, and is not to be seen yet."""

    name: str
    detail: str
    lags: bool = False


def check_up(client: KVClient, project_id: str) -> Iterator[Step]:
    """Verify the token, find the namespace, and write, read, list and delete one key.

    Nothing is left behind, whatever fails. Raises :class:`StoreError`, which says the cure.
    """
    begun = time.monotonic()
    if client.verify_token():
        yield Step("token", "the API token is active")
    client.check_namespace()
    yield Step("namespace", "the KV namespace answers")
    key = f"doctor:{project_id}:{secrets.token_hex(6)}"
    entry = Entry(key, '{"doctor":true}', {"doctor": True})
    try:
        client.put_many([entry])
        was_read = client.get_many([key]).get(key) == entry
        was_listed = any(info.key == key for page in client.list_keys(key) for info in page)
    finally:
        client.delete_many([key])
    unseen = [what for what, seen in (("read", was_read), ("listing", was_listed)) if not seen]
    if unseen:
        detail = f"a key was written and deleted; a {' and a '.join(unseen)} did not have it yet"
        yield Step("access", detail, lags=True)
    else:
        yield Step("access", "one key written, read, listed and deleted")
    left = client.requests_left
    budget = "" if left is None else f"; {left:,} requests are left to the account for now"
    took = time.monotonic() - begun
    yield Step("requests", f"{client.requests_made} requests in {took:.1f} s{budget}")
