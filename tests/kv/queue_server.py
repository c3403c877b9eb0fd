"""A Cloudflare Queue with a pull consumer, beside the KV of :mod:`tests.kv.kv_server`.

Built from Cloudflare's documentation of November 2026: nothing serves these routes locally. Of
late acknowledgements that says two things ("no longer valid", and "Queues will still accept"), so
both can be had.
"""

from __future__ import annotations

import base64
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kv.kv_server import ACCOUNT, KVServer, Refusal, parsed_body

QUEUE = "89abcdef0123456789abcdef01234567"
_LONGEST_MS = 12 * 3600 * 1000


@dataclass
class Message:
    """A message that nobody has acknowledged; ``body`` is as it was published."""

    body: Any
    kind: str = "json"
    visible_at: float = 0.0
    attempts: int = 0
    leases: dict[str, float] = field(default_factory=dict)
    message_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def as_told(self, lease: str) -> dict[str, Any]:
        body = self.body if self.kind == "text" else _encoded(self.body)
        return {
            "id": self.message_id,
            "body": body,
            "attempts": self.attempts,
            "timestamp_ms": 1764000000000,
            "metadata": {"CF-Content-Type": self.kind, "CF-sourceMessageSource": "api"},
            "lease_id": lease,
        }


class QueueServer(KVServer):
    """The server. ``operations`` counts what is billed; ``dead`` is the dead letter queue.

    ``duplicates`` is the share of deliveries that leave the message there for the next pull too.
    """

    def __init__(
        self,
        *,
        max_retries: int = 100,
        accepts_late: bool = True,
        duplicates: float = 0.0,
        can_be_pulled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.max_retries, self.accepts_late = max_retries, accepts_late
        self.duplicates, self.can_be_pulled = duplicates, can_be_pulled
        self.queue = QUEUE
        self.messages: list[Message] = []
        self.dead: list[Message] = []
        self.operations: Counter[str] = Counter()
        self.most_published = 0
        self._clock = clock
        self._random = random.Random(7)

    def publish(self, *bodies: Any, kind: str = "json") -> None:
        """What somebody publishes."""
        with self.lock:
            self.messages += [Message(body, kind, self._clock()) for body in bodies]
            self.operations["write"] += len(bodies)

    def elsewhere(self, method: str, path: str, body: bytes) -> tuple[Any, Any]:
        base = f"/client/v4/accounts/{ACCOUNT}/queues/"
        if not path.startswith(base):
            return super().elsewhere(method, path, body)
        queue, _, rest = path[len(base) :].partition("/")
        if queue != self.queue:
            raise Refusal(404, 11003, "queue not found")
        with self.lock:
            if (method, rest) == ("GET", ""):
                return self._described(), None
            if (method, rest) == ("GET", "metrics"):
                return {"backlog_count": len(self.messages), "backlog_bytes": 0}, None
            if (method, rest) == ("POST", "messages/batch"):
                return self._publish(parsed_body(body), len(body)), None
            if (method, rest) == ("POST", "messages/pull"):
                return self._pull(parsed_body(body)), None
            if (method, rest) == ("POST", "messages/ack"):
                return self._settle(parsed_body(body)), None
        return super().elsewhere(method, path, body)

    def _described(self) -> dict[str, Any]:
        settings = {"batch_size": 10, "max_retries": self.max_retries}
        kind = {"type": "http_pull", "settings": settings}
        return {
            "queue_id": self.queue,
            "queue_name": "nimbus",
            "consumers": [kind if self.can_be_pulled else {"type": "worker"}],
        }

    def _publish(self, request: Any, size: int) -> Any:
        some = request["messages"]
        if not 1 <= len(some) <= 100 or size > 256_000:
            raise Refusal(400, 10001, "expected 1 to 100 messages in 256 KB")
        self.most_published = max(self.most_published, len(some))
        for message in some:
            self.publish(message["body"], kind=message.get("content_type", "json"))
        return {"metadata": {"metrics": {"backlog_count": len(self.messages)}}}

    def _pull(self, request: Any) -> Any:
        if not self.can_be_pulled:
            raise Refusal(405, 10405, "the queue has no HTTP pull consumer")
        size, hold_ms = request.get("batch_size", 5), request.get("visibility_timeout_ms", 30_000)
        if not 1 <= size <= 100 or not 0 < hold_ms <= _LONGEST_MS:
            raise Refusal(400, 10001, "batch_size or visibility_timeout_ms out of range")
        now = self._clock()
        self._bury([m for m in self.messages if m.visible_at <= now])
        ready = [message for message in self.messages if message.visible_at <= now]
        told = []
        for message in self._random.sample(ready, min(size, len(ready))):
            message.attempts += 1
            lease = secrets.token_hex(24)
            message.leases[lease] = now + hold_ms / 1000
            if self._random.random() >= self.duplicates:
                message.visible_at = now + hold_ms / 1000
            told.append(message.as_told(lease))
        self.operations["read"] += len(told)
        return {"message_backlog_count": len(self.messages), "messages": told}

    def _settle(self, request: Any) -> Any:
        acks, retries = request.get("acks", []), request.get("retries", [])
        if len(acks) + len(retries) > 100:
            raise Refusal(400, 10001, "more than 100 leases")
        now, warnings = self._clock(), []
        by_lease = {lease: message for message in self.messages for lease in message.leases}
        for entry in acks:
            message = by_lease.get(entry["lease_id"])
            is_late = message is not None and message.leases[entry["lease_id"]] <= now
            if message is None or (is_late and not self.accepts_late):
                warnings.append("no such lease, or one that is over")
            elif message in self.messages:
                self.messages.remove(message)
                self.operations["delete"] += 1
        for entry in retries:
            message = by_lease.get(entry["lease_id"])
            if message is None or message.leases[entry["lease_id"]] <= now:
                warnings.append("no such lease, or one that is over")
                continue
            message.visible_at = now + entry.get("delay_seconds", 0)
            self._bury([message])
        return {"ackCount": len(acks), "retryCount": len(retries), "warnings": warnings}

    def _bury(self, returned: list[Message]) -> None:
        """What comes back once more than it may is given up."""
        for message in returned:
            if message.attempts > self.max_retries and message in self.messages:
                self.messages.remove(message)
                self.dead.append(message)
                self.operations["write"] += 1


def _encoded(body: Any) -> str:
    text = body if isinstance(body, str) else json.dumps(body)
    return base64.b64encode(text.encode()).decode()
