"""One Cloudflare Queue over REST: messages published, pulled, acknowledged, given back.

What a queue promises, by its documentation: a message that is pulled is not given to another until
its visibility timeout is over, which cannot be extended; it comes again until it is acknowledged,
``max_retries`` times, and then goes to the dead letter queue, or is gone. It may come twice, and in
any order.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.cloudflare.chunks import dump
from nimbus_tasks.kv.cloudflare.transport import IN_FLIGHT, Transport

#: The API's limits of a request, to publish, to pull or to acknowledge.
MESSAGES_A_REQUEST = 100
#: Of 256 KB, since a message has some bytes of its own.
_BYTES_A_REQUEST = 200_000
_LONGEST_SECONDS = 12 * 3600
#: What a pull answers where the queue has no pull consumer.
_NO_PULLS = 405


class Message(NamedTuple):
    """A message in our hands: the lease by which it is acknowledged or given back, and its body
    as JSON (``None`` where it is none)."""

    lease_id: str
    body: object


class Pulled(NamedTuple):
    """What a pull gave, and about how many messages nobody has acknowledged yet."""

    messages: list[Message]
    backlog: int


class QueueInfo(NamedTuple):
    """The queue as its account has it. ``max_retries`` is that of its pull consumer."""

    name: str
    can_be_pulled: bool
    max_retries: int | None


class QueueClient:
    """One queue, asked through ``transport``. Every method raises :class:`StoreError`."""

    def __init__(self, transport: Transport, queue_id: str) -> None:
        self._transport = transport
        self._path = f"/queues/{quote(queue_id, safe='')}"

    @property
    def requests_made(self) -> int:
        """Every request that was sent, retries too."""
        return self._transport.requests_made

    def publish(self, bodies: Iterable[object]) -> None:
        """Publish messages; one may be there twice where an answer was lost."""
        threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="queue")
        try:
            for _ in threads.map(lambda b: self._post("messages/batch", b), _publications(bodies)):
                pass
        finally:  # Ctrl-C waits for nothing
            threads.shutdown(wait=False, cancel_futures=True)

    def pull(self, count: int, hold_seconds: float) -> Pulled:
        """Up to ``count`` messages (100 at the most), which nobody else is given for so long."""
        hold_ms = round(min(hold_seconds, _LONGEST_SECONDS) * 1000)
        wanted = min(count, MESSAGES_A_REQUEST)
        result = self._post(
            "messages/pull", dump({"batch_size": wanted, "visibility_timeout_ms": hold_ms})
        )
        try:
            messages = [_message(told) for told in result.get("messages") or []]
            backlog = result.get("message_backlog_count")
        except (KeyError, TypeError, AttributeError):
            raise self._transport.faults.misshapen("a pull").error() from None
        return Pulled(messages, backlog if isinstance(backlog, int) else len(messages))

    def settle(self, acknowledged: Iterable[str], given_back: Mapping[str, float]) -> None:
        """End leases: messages that are done with, and those that others may have, each after so
        many seconds. A lease that is over already is no error."""
        entries: list[tuple[str, dict[str, Any]]] = [
            *(("acks", {"lease_id": lease}) for lease in acknowledged),
            *(
                (
                    "retries",
                    {"lease_id": lease, "delay_seconds": min(round(delay), _LONGEST_SECONDS)},
                )
                for lease, delay in given_back.items()
            ),
        ]
        for at in range(0, len(entries), MESSAGES_A_REQUEST):
            some = entries[at : at + MESSAGES_A_REQUEST]
            body = {kind: [e for k, e in some if k == kind] for kind in ("acks", "retries")}
            self._post("messages/ack", dump(body))

    def backlog(self) -> int:
        """About how many messages nobody has acknowledged yet: waiting, delayed or in hands."""
        result = self._result("GET", "metrics", None)
        count = result.get("backlog_count") if isinstance(result, dict) else None
        if not isinstance(count, int):
            raise self._transport.faults.misshapen("its metrics").error()
        return count

    def describe(self) -> QueueInfo:
        """What the account says of the queue."""
        result = self._result("GET", "", None)
        if not isinstance(result, dict):
            raise self._transport.faults.misshapen("a queue").error()
        consumers = result.get("consumers")
        told = [c for c in consumers if isinstance(c, dict)] if isinstance(consumers, list) else []
        pulling = [consumer for consumer in told if consumer.get("type") == "http_pull"]
        settings = pulling[0].get("settings") if pulling else None
        retries = settings.get("max_retries") if isinstance(settings, dict) else None
        return QueueInfo(
            str(result.get("queue_name") or ""),
            bool(pulling),
            retries if isinstance(retries, int) else None,
        )

    def close(self) -> None:
        """End what waits, and the connections. The client cannot be used afterwards."""
        self._transport.close()

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        result = self._result("POST", path, body)
        return result if isinstance(result, dict) else {}

    def _result(self, method: str, path: str, body: bytes | None) -> object:
        address = f"{self._path}/{path}".rstrip("/")
        answer = self._transport.request(method, address, body, accept=(_NO_PULLS,))
        if answer.status == _NO_PULLS:
            raise StoreError(
                "the queue hands out no messages over HTTP",
                advice="Give it a pull consumer: wrangler queues consumer http add NAME",
            )
        return answer.document.get("result")


def _publications(bodies: Iterable[object]) -> Iterator[bytes]:
    """The bodies of the requests that publish these, each within the API's limits."""
    some: list[bytes] = []
    size = 0
    for body in bodies:
        message = dump({"body": body, "content_type": "json"})
        if some and (len(some) == MESSAGES_A_REQUEST or size + len(message) > _BYTES_A_REQUEST):
            yield b'{"messages":[' + b",".join(some) + b"]}"
            some, size = [], 0
        some.append(message)
        size += len(message)
    if some:
        yield b'{"messages":[' + b",".join(some) + b"]}"


def _message(told: dict[str, Any]) -> Message:
    lease = told["lease_id"]
    if not isinstance(lease, str):
        raise TypeError
    return Message(lease, _parsed(told.get("body"), told.get("metadata")))


def _parsed(text: object, metadata: object) -> object:
    """The body: JSON comes in base64, text as it is; what is neither is somebody else's."""
    if not isinstance(text, str):
        return None
    kind = metadata.get("CF-Content-Type") if isinstance(metadata, dict) else None
    try:
        if kind in ("json", "bytes"):
            text = base64.b64decode(text, validate=True).decode()
        parsed: object = json.loads(text)
    except (ValueError, RecursionError, binascii.Error):
        return None
    return parsed
