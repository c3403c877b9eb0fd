"""One namespace of Workers KV over REST: bulk calls and listings, a few in flight at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.cloudflare import OFFICIAL_API
from nimbus_tasks.kv.cloudflare.chunks import (
    Chunk,
    check_limits,
    checked_text,
    cut_into_chunks,
    dump,
    pair,
)
from nimbus_tasks.kv.cloudflare.faults import Answer
from nimbus_tasks.kv.cloudflare.transport import IN_FLIGHT, Transport
from nimbus_tasks.kv.store import Entry, KeyInfo, Metadata, sound_metadata

#: KV takes one write a second for a key; a little more, for clocks and ways of different length.
KEY_INTERVAL_SECONDS = 1.05
KEYS_A_READ = 100
KEYS_A_PAGE = 1000
#: The API's own lower limit of a listing.
_SHORTEST_PAGE = 10
#: More keys whose metadata is unknown are cheaper found by one listing of them all.
_LISTED_ALONE = 20
#: How often a bulk call may make no headway, with 1, 2, 4 and 8 seconds between.
_TRIES_WITHOUT_HEADWAY = 5
_TOO_LARGE = 413

_Client = TypeVar("_Client", bound="KVClient")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Read(NamedTuple):
    """A value as bulk get answered it; wrangler's local server leaves the metadata out."""

    entry: Entry
    has_metadata: bool


class KVClient:
    """One namespace, asked through ``transport``."""

    def __init__(self, transport: Transport, namespace_id: str) -> None:
        self._transport = transport
        self._path = f"/storage/kv/namespaces/{quote(namespace_id, safe='')}"
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="kv")

    @property
    def requests_made(self) -> int:
        """Every request that was sent, retries too."""
        return self._transport.requests_made

    @property
    def is_local(self) -> bool:
        """Whether the server is one of this machine, which gives no budget to keep to."""
        return self._transport.is_local

    @property
    def requests_left(self) -> int | None:
        """What the last answer said is left of the account's budget; ``None`` if none did."""
        return self._transport.pacer.remaining

    def pause_seconds(self) -> float:
        """By how much a periodic caller should stretch its interval to make the budget last.

        0 where more than a quarter of the account's requests is left, or nothing is known.
        """
        return self._transport.pacer.pause_seconds()

    def close(self) -> None:
        """End what waits, and the connections. The client cannot be used afterwards."""
        self._transport.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self: _Client) -> _Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def verify_token(self) -> bool:
        """Whether the token is known to be active; ``False`` where the server verifies none.

        Raises :class:`StoreError` for one that is not active. A token of a user and one of an
        account are verified at different addresses.
        """
        if not self._transport.prefix.startswith(f"{OFFICIAL_API}/"):
            return False
        answer = self._transport.request(
            "GET", "/user/tokens/verify", base=OFFICIAL_API, accept=(400, 401, 403)
        )
        if answer.status != 200:
            answer = self._transport.request("GET", "/tokens/verify")
        result = answer.document.get("result")
        status = result.get("status") if isinstance(result, dict) else None
        if status != "active":
            raise StoreError(
                "the API token is not active: it is disabled, has expired or is not yet valid",
                advice="Make a new one at https://dash.cloudflare.com/profile/api-tokens",
            )
        return True

    def check_namespace(self) -> None:
        """Raises :class:`StoreError` where there is no such namespace. Wrangler has any."""
        self._transport.request("GET", f"{self._path}/keys?limit={_SHORTEST_PAGE}")

    def list_keys(self, prefix: str, limit: int | None = None) -> Iterator[list[KeyInfo]]:
        """The keys that begin with ``prefix``, in byte order, a page at a time.

        A page may be empty with more to come.
        """
        left = limit
        query = {"prefix": checked_text(prefix)} if prefix else {}
        while left is None or left > 0:
            ask = KEYS_A_PAGE if left is None else min(KEYS_A_PAGE, max(_SHORTEST_PAGE, left))
            text = urlencode({**query, "limit": str(ask)}, quote_via=quote, safe="")
            answer = self._transport.request("GET", f"{self._path}/keys?{text}")
            try:
                page = [KeyInfo(_text(k["name"]), _metadata(k)) for k in answer.document["result"]]
                cursor = answer.document["result_info"].get("cursor") or ""
            except (KeyError, TypeError, AttributeError):
                page, cursor = None, ""
            if page is None or not isinstance(cursor, str) or cursor == query.get("cursor"):
                raise self._transport.faults.misshapen("a listing").error()
            yield page[:left]
            if not cursor:
                return
            left = None if left is None else left - len(page)
            query["cursor"] = cursor

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of those ``keys`` that exist, with metadata whatever the server."""
        wanted = list(dict.fromkeys(checked_text(key) for key in keys))
        chunks = (wanted[at : at + KEYS_A_READ] for at in range(0, len(wanted), KEYS_A_READ))
        found: dict[str, Entry] = {}
        unknown: list[str] = []
        for reads in self._in_parallel(self._read, chunks):
            for entry, has_metadata in reads:
                found[entry.key] = entry
                if not has_metadata:
                    unknown.append(entry.key)
        for info in self._metadata_of(unknown):
            found[info.key] = found[info.key]._replace(metadata=info.metadata)
        return {key: found[key] for key in wanted if key in found}

    def put_many(self, entries: Iterable[Entry]) -> None:
        """Write ``entries``. Of a key that is there twice the last one counts.

        A sequence is checked as a whole before anything is sent. An iterator is not held in
        memory: each chunk of it is checked before that chunk is sent.
        """
        if isinstance(entries, Sequence):
            checked = list({entry.key: entry for entry in map(check_limits, entries)}.values())
            chunks = cut_into_chunks((entry.key, pair(entry)) for entry in checked)
        else:
            chunks = cut_into_chunks((e.key, pair(check_limits(e))) for e in entries)
        for _ in self._in_parallel(lambda chunk: self._write("PUT", "/bulk", chunk), chunks):
            pass

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete ``keys``; one that does not exist is no error."""
        doomed = [checked_text(key) for key in dict.fromkeys(keys)]
        chunks = cut_into_chunks((key, dump(key)) for key in doomed)
        for _ in self._in_parallel(lambda c: self._write("POST", "/bulk/delete", c), chunks):
            pass

    def _read(self, keys: list[str]) -> list[_Read]:
        body = dump({"keys": keys, "type": "text", "withMetadata": True})
        answer = self._transport.request(
            "POST", f"{self._path}/bulk/get", body, accept=(_TOO_LARGE,)
        )
        if answer.status == _TOO_LARGE:
            # An answer is limited too: to 25 MB, which may be the value of one key.
            if len(keys) == 1:
                raise self._transport.faults.too_large(f"to read {keys[0]}").error()
            middle = len(keys) // 2
            return self._read(keys[:middle]) + self._read(keys[middle:])
        try:
            values = answer.document["result"]["values"]
            answered = ((key, values.get(key)) for key in keys)
            return [_entry_read(key, told) for key, told in answered if told is not None]
        except (KeyError, TypeError, AttributeError):
            fault = self._transport.faults.misshapen("a bulk read")
        raise fault.error()

    def _metadata_of(self, keys: list[str]) -> Iterator[KeyInfo]:
        """From listings, for a server whose bulk read leaves it out."""
        missing = set(keys)
        if len(keys) <= _LISTED_ALONE:
            yield from filter(None, self._in_parallel(self._head, keys))
            return
        # Of text, and not of paths.
        for page in self.list_keys(os.path.commonprefix(keys)):  # noqa: RUF071
            yield from (info for info in page if info.key in missing)
            missing.difference_update(info.key for info in page)
            if not missing:
                return

    def _head(self, key: str) -> KeyInfo | None:
        # The key itself is the first of those that begin with it.
        first = (info for page in self.list_keys(key, limit=1) for info in page)
        return next((info for info in first if info.key == key), None)

    def _write(self, method: str, path: str, chunk: Chunk) -> None:
        """Send a chunk, and again what of it was not taken, until all of it was."""
        tries = 0
        while True:
            answer = self._transport.request(
                method,
                f"{self._path}{path}",
                chunk.body,
                accept=(_TOO_LARGE,),
                least_wait=KEY_INTERVAL_SECONDS,
            )
            rest = _not_taken(answer, chunk)
            if not rest:
                return
            made_headway = len(rest) < len(chunk)
            if answer.status == _TOO_LARGE and not made_headway:
                if len(chunk) == 1:
                    raise self._transport.faults.too_large(f"to write {rest[0]}").error()
                middle = len(rest) // 2
                self._write(method, path, chunk.only(rest[:middle]))
                self._write(method, path, chunk.only(rest[middle:]))
                return
            tries = 0 if made_headway else tries + 1
            if tries == _TRIES_WITHOUT_HEADWAY:
                raise self._transport.faults.not_taken(len(rest)).error()
            if answer.status != _TOO_LARGE:
                words = f"{len(rest):,} of {len(chunk):,} keys were not taken: next try in {{}}"
                self._transport.pacer.pause(KEY_INTERVAL_SECONDS * 2.0 ** max(tries - 1, 0), words)
            chunk = chunk.only(rest)

    def _in_parallel(
        self, work: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[_Result]:
        """``work`` on each item, a few at once; the items are made as there is room for them.

        On an error nothing more is begun, and what is under way is waited for, so that no write
        comes after the error. Ctrl-C waits for nothing.
        """
        running: set[Future[_Result]] = set()
        try:
            for item in items:
                keep = 0 if getattr(item, "comes_last", False) else IN_FLIGHT - 1
                while len(running) > keep:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                running.add(self._threads.submit(work, item))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except Exception:
            wait(running)
            raise


def _not_taken(answer: Answer, chunk: Chunk) -> list[str]:
    """The keys that a bulk call did not write; all of them where that is not to be known."""
    result = answer.document.get("result")
    told = result if isinstance(result, dict) else {}
    failed, count = told.get("unsuccessful_keys"), told.get("successful_key_count")
    everything = chunk.keys
    if isinstance(failed, list) and failed:
        known = set(everything)
        return failed if known.issuperset(map(str, failed)) else everything
    if answer.status == _TOO_LARGE:
        return [] if count == len(chunk) else everything
    return everything if isinstance(count, int) and count < len(chunk) else []


def _entry_read(key: str, told: object) -> _Read:
    if isinstance(told, str):
        return _Read(Entry(key, told), has_metadata=False)
    if isinstance(told, dict):
        return _Read(Entry(key, _text(told["value"]), _metadata(told)), has_metadata=True)
    raise TypeError


def _text(told: object) -> str:
    if isinstance(told, str):
        return told
    raise TypeError


def _metadata(told: dict[str, Any]) -> Metadata | None:
    return sound_metadata(told.get("metadata"))
