"""``"queue": "cloudflare-queues"``: the queue as messages, so that several machines share the work.

Inside, the queue is an item a key; this store in front of the real one publishes the items that are
written, once everything else of the transaction is, and shows as items the messages in our hands.
It pulls them when a worker asks for the first items of the queue; nobody else is given them for
``hold_seconds``.

The statuses that are written here decide what becomes of the messages: a message is held while its
page is ``processing``, is acknowledged when an outcome is written, and is given back when the page
goes back to its old place in the queue. So a worker that dies acknowledges nothing, and what it had
comes again. A message too many does no harm: the status says whether its page is still to be worked
on. A missing message is found by the status of its page, as in every other queue. A message that
comes again while its page is at work is acknowledged: the lease in the status guards the page.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from nimbus_tasks.core.clock import iso_after
from nimbus_tasks.core.errors import NimbusError, StoreError, StoreUnreachableError
from nimbus_tasks.core.keys import is_id, last_part, queue_key, status_prefix
from nimbus_tasks.core.leases import CLOCK_SKEW_SECONDS
from nimbus_tasks.core.queue_front import QueueFrontStore
from nimbus_tasks.core.wire import count_field, dump_json, load_object, priority_field, time_field
from nimbus_tasks.kv.store import Entry, KeyInfo, KeyValues, Store

if TYPE_CHECKING:
    from nimbus_tasks.kv.cloudflare.queues import Message, QueueClient

#: A message that is none of this project's is given back, and not seen here for so long: it goes to
#: its own reader, or by the queue's own rule to the dead letter queue.
FOREIGN_DELAY_SECONDS = 30
#: A queue that has given nothing for some lags and this long has no messages for the pages that
#: wait, whatever backlog it tells.
QUIET_SECONDS = 60.0
#: While pages are at work, a queue that refuses is not asked for so long: leases and outcomes do
#: not need it.
OUTAGE_PAUSE_SECONDS = 20.0
_MOST_AT_ONCE = 100


class _Held(NamedTuple):
    """An item in our hands: its entry, the leases of its messages (there may be several), and by
    our clock when others may be given them."""

    entry: Entry
    leases: tuple[str, ...]
    until: float


class MessageQueueStore(QueueFrontStore):
    """``inner`` with the queue of one project in messages.

    ``hold_seconds`` makes it that of a worker: only then messages are pulled. ``clock`` is for
    tests.
    """

    serves_batches = False

    def __init__(
        self,
        inner: Store,
        queue: QueueClient,
        project_id: str,
        *,
        hold_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner, project_id)
        self._queue = queue
        self._statuses = status_prefix(project_id)
        self._hold_seconds = hold_seconds
        self._clock = clock
        #: In our hands: what nobody has claimed, by the key of the item; pages at work, by page id.
        self._waiting: dict[str, _Held] = {}
        self._at_work: dict[str, _Held] = {}
        #: What the queue is still to be told.
        self._unpublished: dict[str, dict[str, Any]] = {}
        self._acknowledged: list[str] = []
        self._given_back: dict[str, float] = {}
        #: What a transaction has done so far: items claimed, states written by page id, items put.
        self._is_open = False
        self._claimed: dict[str, _Held] = {}
        self._written: dict[str, str] = {}
        self._items: dict[str, Entry] = {}
        self._next_pull = 1
        self._backlog: int | None = None
        self._quiet_since: float | None = None
        self._patience = random.uniform(2, 5)
        self._pull_again_at = self._last_pull = 0.0

    def _get_items(self, keys: list[str]) -> dict[str, Entry]:
        return {key: self._waiting[key].entry for key in keys if key in self._waiting}

    def _put_items(self, items: list[Entry]) -> None:
        """They are published at the end of the transaction."""
        self._reach()
        self._items |= {item.key: item for item in items if item.key not in self._waiting}

    def _delete_items(self, keys: set[str]) -> None:
        for key in keys & self._waiting.keys():
            self._claimed[key] = self._waiting.pop(key)

    def _scan_items(self, prefix: str, limit: int | None) -> Iterator[KeyInfo]:
        if limit is not None:
            self._pull(limit)
        listed = sorted(self._waiting)
        return (KeyInfo(key, self._waiting[key].entry.metadata) for key in islice(listed, limit))

    def _passing(self, entry: Entry) -> None:
        if entry.key.startswith(self._statuses):
            self._written[last_part(entry.key)] = str((entry.metadata or {}).get("status"))

    def hidden_items(self) -> int:
        return max(0, self._reach() - len(self._waiting) - len(self._at_work))

    def may_hide(self, count: int) -> bool:
        """Whether the queue may have messages for so many pages.

        A worker knows more than the backlog: when the queue has given it nothing for twice the lag,
        it has seen the claims of all messages that others were given. Several workers that wait get
        different patiences, so that one finds out first and the others are given what it publishes.
        """
        if self._hold_seconds is not None:
            if self._quiet_since is None:
                return True
            quiet = self._last_pull - self._quiet_since - self._patience * self.lag_seconds
            if quiet <= 0 or quiet > QUIET_SECONDS:
                return quiet <= 0
        return count <= self.hidden_items()

    @contextmanager
    def transaction(self) -> Iterator[KeyValues]:
        if self._is_open:
            yield self
            return
        self._is_open = True
        self._claimed, self._written, self._items, self._next_pull = {}, {}, {}, 1
        try:
            with self._inner.transaction():
                yield self
        except BaseException:
            self._waiting |= self._claimed  # not claimed, or whoever did gives its page back
            raise
        finally:
            self._is_open = False
        self._account()
        self._tell()

    def close(self) -> None:
        """Give back at once the messages that were pulled and not claimed, and those of pages of
        which no end was written: another worker has them by now, or their leases will lapse."""
        for held in (*self._waiting.values(), *self._at_work.values()):
            self._given_back |= dict.fromkeys(held.leases, 0)
        with suppress(NimbusError):  # then they come back by themselves
            self._settle()
        self._queue.close()
        super().close()

    def _reach(self) -> int:
        """About how many messages there are. The queue is asked once: so one that is not there, or
        that refuses, is found before a page is written that it is to hold."""
        if self._backlog is None:
            self._backlog = self._queue.backlog()
        return self._backlog

    def _pull(self, limit: int) -> None:
        """Have ``limit`` messages in hand that nobody has claimed, as far as there are so many.

        While a transaction gets only messages of pages that have ended, each pull asks for more.
        Messages whose pages cannot be claimed yet stop it: others are left for workers that can
        claim them.
        """
        now = self._clock()
        self._waiting = {key: held for key, held in self._waiting.items() if held.until > now}
        missing = limit - len(self._waiting)
        if self._hold_seconds is None or not self._is_open or missing <= 0 or not self._next_pull:
            return
        if self._waiting and self._next_pull > 1:
            return
        if self._at_work and now < self._pull_again_at:
            return
        count = min(missing * self._next_pull, _MOST_AT_ONCE)
        try:
            pulled = self._queue.pull(count, self._hold_seconds)
        except StoreError:
            if not self._at_work:
                raise
            # What the pages at work have cost is not to be lost with the queue.
            self._pull_again_at = self._clock() + OUTAGE_PAUSE_SECONDS
            return
        self._next_pull = 0 if len(pulled.messages) < count else self._next_pull * 4
        self._backlog = pulled.backlog
        ours = [self._take(message, now + self._hold_seconds) for message in pulled.messages]
        if any(ours):
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        # may_hide goes by the time of the last pull, so that its answer is the same until the next
        # one. Else a worker might put nothing back, and a moment later see nothing to wait for.
        self._last_pull = now

    def _take(self, message: Message, until: float) -> bool:
        """Keep a message as the item that it is; ``False`` if it is none of ours."""
        entry = self._item(message.body)
        if entry is None:
            self._given_back[message.lease_id] = FOREIGN_DELAY_SECONDS
            return False
        known = self._waiting.get(entry.key)
        leases = (*(known.leases if known else ()), message.lease_id)
        self._waiting[entry.key] = _Held(entry, leases, until)
        return True

    def _item(self, body: object) -> Entry | None:
        """The item that a message stands for; ``None`` if it is none of this project."""
        if not isinstance(body, dict) or body.get("project_id") != self._project_id:
            return None
        page_id, batch_id = body.get("page_id"), body.get("batch_id")
        priority, queued_at = (
            priority_field(body.get("priority")),
            time_field(body.get("queued_at")),
        )
        if not (is_id(page_id) and is_id(batch_id) and priority and queued_at):
            return None
        if queued_at > iso_after(CLOCK_SKEW_SECONDS):
            return None  # its page would be waited for until then
        attempt = count_field(body.get("attempt")) or 1
        item = {
            "page_id": page_id,
            "batch_id": batch_id,
            "priority": priority,
            "queued_at": queued_at,
            "attempts": attempt - 1,
        }
        key = queue_key(self._project_id, str(page_id), priority, queued_at)
        return Entry(key, dump_json(item), {"page_id": page_id, "batch_id": batch_id})

    def _body(self, entry: Entry) -> dict[str, Any]:
        """The message of an item."""
        item = load_object(entry)
        attempt = item.pop("attempts", 0) + 1
        return {"project_id": self._project_id, **item, "attempt": attempt}

    def _account(self) -> None:
        """What the transaction has written decides what becomes of the messages in hand."""
        for page_id, state in self._written.items():
            if state == "processing" or page_id not in self._at_work:
                continue
            held = self._at_work.pop(page_id)
            if self._items.pop(held.entry.key, None) is not None:
                self._given_back |= dict.fromkeys(held.leases, 0)
            else:
                self._acknowledged += held.leases
        begun: dict[str, _Held] = {}
        for key, held in self._claimed.items():
            page_id = last_part(key)
            if self._written.get(page_id) != "processing":
                self._acknowledged += held.leases
                continue
            # A page may have had messages of several places.
            others = begun[page_id].leases if page_id in begun else ()
            begun[page_id] = held._replace(leases=(*held.leases, *others))
        # Claimed anew: the claim before is over.
        for page_id in begun.keys() & self._at_work.keys():
            self._acknowledged += self._at_work[page_id].leases
        self._at_work |= begun
        self._unpublished |= {key: self._body(entry) for key, entry in self._items.items()}

    def _tell(self) -> None:
        """Tell the queue. What it could not be told in an outage is told with the next change."""
        if self._unpublished:
            self._queue.publish(self._unpublished.values())
            self._backlog = self._reach() + len(self._unpublished)
            self._unpublished, self._quiet_since = {}, None
        with suppress(StoreUnreachableError):
            self._settle()

    def _settle(self) -> None:
        if self._acknowledged or self._given_back:
            self._queue.settle(self._acknowledged, self._given_back)
            self._acknowledged, self._given_back = [], {}
