"""The store on Workers KV: what :class:`~nimbus_tasks.kv.cloudflare.client.KVClient` reads and
writes, behind the interface of every store.

KV has no transactions, lags behind its writes, and takes one write a second for a key. So the
writes of a transaction are gathered and sent at its end, in few requests and in order, each key at
most once a second. Reads are corrected by what this directory wrote lately (the journal) and by
what this process has seen already: no state is ever followed by an older one. Commands of one
directory take turns with their transactions; between machines there is no lock, and it is one
worker a project.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from heapq import merge
from itertools import islice

from nimbus_tasks.kv.cloudflare.chunks import Pending, check_limits, in_requests
from nimbus_tasks.kv.cloudflare.client import KEY_INTERVAL_SECONDS, KVClient
from nimbus_tasks.kv.cloudflare.journal import KEPT_SECONDS, Journal, Kept, Written, digest_of
from nimbus_tasks.kv.cloudflare.revisions import (
    bare,
    moment,
    revision_of,
    stamped,
    stored_revision,
    without_revision,
)
from nimbus_tasks.kv.store import (
    Entry,
    KeyInfo,
    KeyValues,
    Store,
)

#: For so long a write of ours, or a look at one key, is not asked for again.
FRESH_SECONDS = 5.0
#: How long a prefetched listing answers for what it does not have; KV's own look-ups lag as much.
ABSENT_SECONDS = 60.0
#: Requests a second that leave an account something for others: 1,200 in five minutes is all.
REQUESTS_A_SECOND = 3.0
#: Listings of at most so many keys are kept for the rest of a transaction.
_KEYS_CACHED = 50_000
#: Records that stay once they are there (but for a batch that ends empty): one that has been seen
#: is not forgotten because a listing lacks it.
_LASTING = ("status:", "batch:")


class CloudflareStore(Store):
    """A store on one KV namespace.

    ``paced``: it shares an account's budget of requests. ``shared``: other machines write the same
    records, so even what this directory has just written is read again. ``sleep`` and ``clock`` are
    for tests.
    """

    lag_seconds = 60.0
    memory_seconds = KEPT_SECONDS

    def __init__(
        self,
        client: KVClient,
        journal: Journal,
        *,
        paced: bool = True,
        shared: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._journal = journal
        self._paced = paced
        self._shared = shared

        self._sleep = sleep
        self._clock = clock
        self._pending: dict[str, Pending] | None = None
        self._group = 0
        self._cache: dict[str, list[KeyInfo]] | None = None
        self._seen: dict[str, tuple[str, str, float]] = {}
        self._whole: dict[str, tuple[float, frozenset[str]]] = {}
        self._foreign: dict[str, str] = {}
        self._heads: dict[str, tuple[float, KeyInfo | None]] = {}
        self._counted, self._cost = 0, 0

    # --- reading ---

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        wanted = list(dict.fromkeys(keys))
        pending = self._pending or {}
        found = {k: p.entry for k in wanted if (p := pending.get(k)) is not None}
        asked = [key for key in wanted if key not in found]
        ours = self._journal.get_many(asked)
        if ours and not self._shared and self._journal.sending_since() is None:
            for key, kept in ours.items():
                if self._is_fresh(kept.written.at) and (kept.written.is_deletion or kept.entry):
                    found[key] = kept.entry
        asked = [key for key in asked if key not in found]
        read = self._read(asked, ours)
        for key in asked:
            found[key] = entry = read.get(key)
            if key in ours and not self._is_newer(entry, ours[key].written):
                found[key] = ours[key].entry or (None if ours[key].written.is_deletion else entry)
        return {key: bare(entry) for key in wanted if (entry := found[key]) is not None}

    def _read(self, keys: list[str], ours: Mapping[str, Kept]) -> dict[str, Entry]:
        """What KV says of ``keys``. A content of ours that has not arrived is waited for; if it
        does not come, it is not there: an older one in its place would be worked on."""
        there = [key for key in keys if not self._is_absent(key)]
        read = self._client.get_many(there)
        unkept = {
            key: kept.written
            for key, kept in ours.items()
            if key in keys and kept.value is None and not kept.written.is_deletion
        }

        def late() -> list[str]:
            return [key for key, ours in unkept.items() if not self._is_there(read.get(key), ours)]

        for pause in (1.0, 2.0, 4.0, 8.0):
            if not late():
                break
            self._sleep(pause)
            read |= self._client.get_many(late())
        for key in late():
            read.pop(key, None)
        if self._pending is not None:
            for key in keys:
                entry = read.get(key)
                is_foreign = entry is not None and not stored_revision(entry)
                self._foreign[key] = digest_of(entry.value) if entry and is_foreign else ""
        return read

    def scan(self, prefix: str, *, limit: int | None = None) -> Iterator[KeyInfo]:
        pending = {k: p for k, p in (self._pending or {}).items() if k.startswith(prefix)}
        ours = sorted(KeyInfo(k, p.entry.metadata) for k, p in pending.items() if p.entry)
        ask = None if limit is None else limit + len(pending)
        others = (info for info in self._listing(prefix, ask) if info.key not in pending)
        yield from islice(merge(others, ours, key=lambda info: info.key), limit)

    def head(self, key: str) -> KeyInfo | None:
        if self._pending is not None and key in self._pending:
            entry = self._pending[key].entry
            return None if entry is None else KeyInfo(key, entry.metadata)
        at, known = self._heads.get(key, (0.0, None))
        ours = self._journal.get_many([key]).get(key)
        is_fresh = ours is not None and not self._shared and self._is_fresh(ours.written.at)
        # While somebody is sending, the journal does not know all that has been written.
        if ours is not None and is_fresh and self._journal.sending_since() is None:
            return None if ours.written.is_deletion else KeyInfo(key, ours.metadata)
        # A snapshot outside a transaction is of somebody who looks, a monitor say: at what is now.
        is_look = self._cache is not None and self._pending is None
        if self._is_fresh(at) and not is_fresh and not is_look:
            return known
        info = None if self._is_absent(key) else super().head(key)
        self._heads[key] = (self._clock(), info)
        return info

    def prefetch(self, prefix: str) -> None:
        names = frozenset(info.key for info in self._listing(prefix, None))
        self._whole[prefix] = (self._clock(), names)

    def _listing(self, prefix: str, limit: int | None) -> Iterator[KeyInfo]:
        """The keys under ``prefix`` as they are by all that we know but for this transaction."""
        if self._cache is not None and prefix in self._cache:
            yield from self._cache[prefix]
            return
        gone = 0 if limit is None else sum(w.is_deletion for w in self._journal.scan(prefix))
        pages = self._client.list_keys(prefix, None if limit is None else limit + gone)
        soon = self._soon()
        listed: Iterator[KeyInfo] = (self._latest(info, soon) for page in pages for info in page)
        if limit is None and prefix.startswith(_LASTING):
            listed = self._with_seen(listed, prefix)
        kept: list[KeyInfo] | None = [] if limit is None and self._cache is not None else None
        # Closed at once where the listing fails: the journal's cursor would stay open.
        with closing(self._journal.scan(prefix)) as written:
            for corrected in self._corrected(listed, written):
                info = KeyInfo(corrected.key, without_revision(corrected.metadata))
                if kept is not None:
                    kept.append(info)
                    kept = kept if len(kept) <= _KEYS_CACHED else None
                yield info
        if kept is not None and self._cache is not None:
            self._cache[prefix] = kept

    def _latest(self, info: KeyInfo, soon: str) -> KeyInfo:
        """The listed key, or what this process has seen of it already if that is newer. A revision
        later than ``soon`` is of the future and is not believed."""
        revision = revision_of(info.metadata)
        if not revision or revision > soon:
            return info
        known, text, _ = self._seen.get(info.key, ("", "", 0.0))
        if revision < known <= soon:
            return KeyInfo(info.key, json.loads(text))
        if known != revision:
            text = json.dumps(info.metadata, separators=(",", ":"))
        self._seen[info.key] = (revision, text, self._clock())
        return info

    def _with_seen(self, listed: Iterator[KeyInfo], prefix: str) -> Iterator[KeyInfo]:
        """The listing, and what an earlier one had lately but this one lacks: it comes from a
        location of Cloudflare's that the record has not reached yet."""
        since = self._clock() - self.lag_seconds
        known = iter(
            sorted(
                k for k, (_, _, at) in self._seen.items() if at >= since and k.startswith(prefix)
            )
        )
        key = next(known, None)
        for info in listed:
            while key is not None and key < info.key:
                yield KeyInfo(key, json.loads(self._seen[key][1]))
                key = next(known, None)
            yield info
            if key == info.key:
                key = next(known, None)
        while key is not None:
            yield KeyInfo(key, json.loads(self._seen[key][1]))
            key = next(known, None)

    def _corrected(
        self, listed: Iterable[KeyInfo], written: Iterator[Written]
    ) -> Iterator[KeyInfo]:
        """Both in the order of their keys: the listing, where it is not older than our writes."""
        ours = next(written, None)
        for info in listed:
            while ours is not None and ours.key < info.key:
                yield from self._ours(ours)  # not listed yet
                ours = next(written, None)
            if ours is None or ours.key != info.key:
                yield info
                continue
            if self._is_there(Entry(info.key, "", info.metadata), ours):
                yield info
            else:
                yield from self._ours(ours)
            ours = next(written, None)
        while ours is not None:
            yield from self._ours(ours)
            ours = next(written, None)

    def _ours(self, written: Written) -> Iterator[KeyInfo]:
        if not written.is_deletion:
            kept = self._journal.get_many([written.key]).get(written.key)
            yield KeyInfo(written.key, kept.metadata if kept else None)

    def _is_newer(self, read: Entry | None, ours: Written) -> bool:
        """Whether a read is newer than our write.

        A value without a revision is somebody else's, written before ours or after: before, if it
        is the value that we found there. In a listing, which has no values, or where we had not
        looked before we wrote, ours counts as the newer for as long as reads lag.
        """
        revision = "" if read is None else stored_revision(read)
        if read is None or "" < revision <= self._soon():
            return revision > ours.revision
        if read.value and ours.replaced is not None:
            return digest_of(read.value) != ours.replaced
        return not 0 <= self._clock() - ours.at <= self.lag_seconds

    def _soon(self) -> str:
        """The last revision that is believed. A later one was made before a clock was set back, or
        is rubbish: what is written now would never count as newer."""
        return moment(self._clock() + self.lag_seconds)

    def _is_there(self, read: Entry | None, ours: Written) -> bool:
        """Whether a read is our write, or newer."""
        if read is None:
            return False
        is_the_same = stored_revision(read) == ours.revision and not ours.is_deletion
        return is_the_same or self._is_newer(read, ours)

    def _is_fresh(self, at: float) -> bool:
        # A time of the future is of before the clock was set back.
        return 0 <= self._clock() - at < FRESH_SECONDS

    def _is_absent(self, key: str) -> bool:
        for prefix, (at, names) in list(self._whole.items()):
            if not key.startswith(prefix):
                continue
            if not 0 <= self._clock() - at < ABSENT_SECONDS:
                self.prefetch(prefix)
                _, names = self._whole[prefix]
            return key not in names
        return False

    # --- writing ---

    def put_many(self, entries: Iterable[Entry]) -> None:
        with self.transaction():
            self._add((entry.key, check_limits(entry)) for entry in entries)

    def delete_many(self, keys: Iterable[str]) -> None:
        with self.transaction():
            self._add((key, None) for key in keys)

    def _add(self, writes: Iterable[tuple[str, Entry | None]]) -> None:
        assert self._pending is not None
        self._group += 1
        for key, entry in writes:
            # Written again, a key keeps its turn: a batch that is marked first is sent first.
            before = self._pending.get(key)
            self._pending[key] = Pending(before.group if before else self._group, entry)

    @contextmanager
    def transaction(self) -> Iterator[KeyValues]:
        if self._pending is not None:
            yield self
            return
        with self._journal.turn():
            self._let_go_stale()
            self._pending, self._foreign = {}, {}
            try:
                with self.snapshot():
                    yield self
                pending, self._pending = self._pending, {}
                self._send(pending)
            finally:
                self._pending = None

    def _let_go_stale(self) -> None:
        """Wait out what a killed command may have sent. It is our turn, so whoever left the mark of
        sending is gone, and the journal does not know what came of it: after ``FRESH_SECONDS`` what
        it says is asked for again anyway."""
        if (begun := self._journal.sending_since()) is not None:
            self._sleep(max(0.0, min(FRESH_SECONDS, begun + FRESH_SECONDS - self._clock())))

    @contextmanager
    def snapshot(self) -> Iterator[KeyValues]:
        if self._cache is not None:
            yield self
            return
        self._cache = {}
        try:
            yield self
        finally:
            self._cache = None
            made = self._client.requests_made
            self._cost, self._counted = made - self._counted, made

    def _send(self, pending: dict[str, Pending]) -> None:
        """Write first and delete then: a queue item too many is passed over, one too few is not."""
        if not pending:
            return
        self._wait_for_turn(pending)
        self._journal.begin_sending()
        revision = moment(self._clock())
        for entries in in_requests(pending):
            self._client.put_many([stamped(entry, revision) for entry in entries])
            self._journal.add(entries, [], revision, self._replaced(entries))
        doomed = [key for key, write in pending.items() if write.entry is None]
        if doomed:
            self._client.delete_many(doomed)
            self._journal.add([], doomed, revision)
        self._journal.end_sending()
        for key in pending:
            self._heads.pop(key, None)
        self._cost += self._client.requests_made - self._counted
        self._counted = self._client.requests_made

    def _replaced(self, entries: Iterable[Entry]) -> dict[str, str]:
        """Digests of what somebody else had written where these entries are now, as last seen."""
        keys = [entry.key for entry in entries if entry.key in self._foreign]
        before = self._journal.get_many([key for key in keys if not self._foreign[key]])
        known = {key: kept.written.replaced or "" for key, kept in before.items()}
        return {key: self._foreign[key] or known.get(key, "") for key in keys}

    def _wait_for_turn(self, keys: Iterable[str]) -> None:
        ours = self._journal.get_many(keys).values()
        last = max((kept.written.at for kept in ours), default=0.0)
        wait = last + KEY_INTERVAL_SECONDS - self._clock()
        if 0 < wait <= KEY_INTERVAL_SECONDS:  # a clock that was set back makes nobody wait
            self._sleep(wait)

    @property
    def write_interval(self) -> float:
        if not self._paced:
            return KEY_INTERVAL_SECONDS
        pause = self._client.pause_seconds()
        return max(KEY_INTERVAL_SECONDS, self._cost / REQUESTS_A_SECOND) + pause

    @property
    def read_pause(self) -> float:
        return self._client.pause_seconds()

    def faults(self) -> list[str]:
        self._client.check_namespace()
        return []

    def close(self) -> None:
        self._client.close()
        self._journal.close()
