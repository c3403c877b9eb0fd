"""A KV REST API in memory, on loopback: as production answers, with faults on demand.

    with KVServer(faults=seeded_faults(7, rate=0.2)) as server:
        client = KVClient(Transport(prefix=server.prefix, token=None), server.namespace)

A fault is one of the names in :data:`FAULTS`, or an :class:`Answer` of any shape; the callable
``faults`` is asked before each request, and gives one or ``None``.
"""

from __future__ import annotations

import base64
import bisect
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

ACCOUNT = "fedcba9876543210fedcba9876543210"
NAMESPACE = "0123456789abcdef0123456789abcdef"

Value = tuple[str, Any]


class Call(NamedTuple):
    """A request as the fault plan sees it; ``number`` counts from 0."""

    number: int
    method: str
    path: str


class Answer(NamedTuple):
    """An answer in place of the right one; nothing is done."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Faults = Callable[[Call], "str | Answer | None"]

#: 429, with ``Retry-After`` after the colon.
_THROTTLED = ("429", "429:0", "429:1")
_BROKEN = ("500", "502", "503", "520", "524")
#: The connection reset before and after the work is done; the answer's JSON cut off, with a length
#: that fits and with one that does not.
_LOST = ("reset_before", "reset_after", "cut", "short")
#: A bulk write that takes half of it; the same with a 413; a 413 that takes nothing; a page of a
#: listing with nothing on it and more to come.
_PARTIAL = ("partial", "413_partial", "413", "empty_page")
FAULTS = (*_THROTTLED, *_BROKEN, *_LOST, *_PARTIAL)
#: What the network and the service do on a bad day.
MIXED = ("429", "429:0", "429:1", "500", "reset_before", "reset_after", "cut", "partial")


def seeded_faults(seed: int, *, rate: float, kinds: Iterable[str] = MIXED) -> Faults:
    """A share of the requests, chosen by a seed."""
    chosen, chance, lock = tuple(kinds), random.Random(seed), threading.Lock()

    def plan(_: Call) -> str | None:
        with lock:
            return chance.choice(chosen) if chance.random() < rate else None

    return plan


def faults_in_turn(*faults: str | Answer | None) -> Faults:
    """The first requests have these; all after them go well."""
    return lambda call: faults[call.number] if call.number < len(faults) else None


class Refusal(Exception):  # noqa: N818 - an answer, no error
    # An answer, and no error of the server.
    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class KVServer:
    """The server. ``data`` (key → value, metadata) may be read and written by a test."""

    def __init__(
        self,
        *,
        token: str | None = None,
        latency: float = 0.0,
        faults: Faults | None = None,
        with_metadata: bool = True,
        stale_reads: float = 0.0,
        strict_one_write_per_second: bool = False,
        headers: Callable[[Call], dict[str, str]] = lambda _: {},
    ) -> None:
        self.token, self.latency, self.faults = token, latency, faults
        #: False: bulk reads leave metadata out, as wrangler's local server does.
        self.with_metadata = with_metadata
        self.stale_reads = stale_reads
        self.strict_one_write_per_second = strict_one_write_per_second
        #: Of every answer, ``Ratelimit`` for one.
        self.headers = headers
        self.account, self.namespace = ACCOUNT, NAMESPACE
        self.data: dict[str, Value] = {}
        self.requests: list[tuple[str, str]] = []
        #: The headers of each request, and the size of its body.
        self.seen: list[dict[str, str]] = []
        self.body_sizes: list[int] = []
        self.written_twice: list[str] = []
        #: Whatever the server itself did not get right.
        self.errors: list[str] = []
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self._changes = 0
        self._sorted: tuple[tuple[int, int], list[str]] | None = None
        self._written_at: dict[str, float] = {}
        self._history: dict[str, list[tuple[float, Value | None]]] = {}
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.kv = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.prefix = f"{self.url}/client/v4/accounts/{ACCOUNT}"

    def __enter__(self) -> KVServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        # Nobody goes on talking over a connection that was left open.
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def begin(self, method: str, path: str, headers: dict[str, str], size: int) -> Call:
        """Count a request."""
        with self.lock:
            call = Call(len(self.requests), method, path)
            self.requests.append((method, path))
            self.seen.append(headers)
            self.body_sizes.append(size)
        return call

    def elsewhere(self, method: str, path: str, body: bytes) -> tuple[Any, Any]:
        """Result and result_info of a request for another service of the account."""
        raise Refusal(404, 7003, "Could not route to that path")

    def write(self, changes: Iterable[tuple[str, Value | None]]) -> None:
        """Set keys, or delete those that are given ``None``."""
        now = time.monotonic()
        with self.lock:
            self._changes += 1
            for key, value in changes:
                if self.strict_one_write_per_second:
                    if now - self._written_at.get(key, now - 9) < 1:
                        self.written_twice.append(key)
                    self._written_at[key] = now
                if self.stale_reads:
                    past = self._history.setdefault(key, [(0.0, self.data.get(key))])
                    past.append((now, value))
                if value is None:
                    self.data.pop(key, None)
                else:
                    self.data[key] = value

    def read(self, key: str) -> Value | None:
        past = self._history.get(key)
        if not past or not self.stale_reads:
            return self.data.get(key)
        then = time.monotonic() - self.stale_reads
        while len(past) > 1 and past[1][0] <= then:  # nobody will ask for what was before
            past.pop(0)
        return past[0][1]

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """A page of a listing, and whether more comes. Python sorts text as its UTF-8 sorts."""
        with self.lock:
            keys = self._sorted_keys()
            at = max(bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, after))
            found: list[tuple[str, Value]] = []
            while at < len(keys) and len(found) <= limit and keys[at].startswith(prefix):
                value = self.read(keys[at])
                if value is not None:
                    found.append((keys[at], value))
                at += 1
        page = [
            {"name": key} if value[1] is None else {"name": key, "metadata": value[1]}
            for key, value in found[:limit]
        ]
        return page, len(found) > limit

    def _sorted_keys(self) -> list[str]:
        state = (self._changes, len(self.data))
        if self._sorted is None or self._sorted[0] != state:
            self._sorted = (state, sorted({*self.data, *self._history}))
        return self._sorted[1]


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    kv: KVServer

    def handle_error(self, request: object, client_address: object) -> None:
        import traceback

        text = traceback.format_exc()
        # A client that goes away (a test that kills it) is no fault of the server.
        if not any(name in text for name in ("ConnectionResetError", "BrokenPipeError")):
            self.kv.errors.append(text)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def setup(self) -> None:
        super().setup()
        with self.server.kv.lock:
            self.server.kv.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.kv.lock:
            self.server.kv.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self) -> None:
        kv = self.server.kv
        size = int(self.headers.get("Content-Length") or 0)
        call = kv.begin(self.command, self.path, dict(self.headers.items()), size)
        fault = kv.faults(call) if kv.faults else None
        if kv.latency:
            time.sleep(kv.latency)
        if fault == "reset_before":
            return self._reset()
        body = self.rfile.read(size)
        if isinstance(fault, Answer):
            return self._send(call, fault)
        if fault and fault.partition(":")[0].isdigit() and fault != "413":
            return self._send(call, _failing(fault))
        try:
            answer = _success(*self._answer(body, fault))
        except Refusal as refusal:
            answer = _refusal(refusal)
        if fault == "reset_after":
            return self._reset()
        if fault == "cut":
            answer = answer._replace(body=answer.body[: len(answer.body) // 2])
        return self._send(call, answer, is_short=fault == "short")

    do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _send(self, call: Call, answer: Answer, *, is_short: bool = False) -> None:
        lines = [
            f"HTTP/1.1 {answer.status} Status",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
        ]
        extra = (*answer.headers, *self.server.kv.headers(call).items())
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in extra)])
        body = answer.body[: len(answer.body) // 2] if is_short else answer.body
        self.close_connection = self.close_connection or is_short
        self.wfile.write(head.encode("latin-1") + b"\r\n\r\n" + body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            socket.socket(fileno=self.connection.detach()).close()

    def _answer(self, body: bytes, fault: str | None) -> tuple[Any, Any, int]:
        """Result, result_info and status of a request that is in order."""
        kv = self.server.kv
        url = urlsplit(self.path)
        if kv.token is not None and self.headers.get("Authorization") != f"Bearer {kv.token}":
            raise Refusal(401, 10000, "Authentication error")
        base = f"/client/v4/accounts/{kv.account}/storage/kv/namespaces/"
        if not url.path.startswith(base):
            return *kv.elsewhere(self.command, url.path, body), 200
        namespace, _, rest = url.path[len(base) :].partition("/")
        if namespace != kv.namespace:
            raise Refusal(404, 10013, "namespace not found")
        if fault == "413":
            return None, None, 413
        route = (self.command, rest.partition("/")[0] if rest.startswith("values/") else rest)
        if route == ("GET", "keys"):
            return *_listing(kv, parse_qs(url.query), fault), 200
        if route == ("POST", "bulk/get"):
            return {"values": _bulk_get(kv, parsed_body(body))}, None, 200
        if route == ("PUT", "bulk"):
            return _bulk(
                kv, [_checked_pair(pair) for pair in parsed_body(body, most=10_000)], fault
            )
        if route == ("POST", "bulk/delete"):
            return _bulk(kv, [(key, None) for key in parsed_body(body, most=10_000)], fault)
        if route[1] == "values":
            return _single(kv, self.command, unquote(rest.partition("/")[2]), body), None, 200
        raise Refusal(404, 7003, "Could not route to that path")


def _listing(kv: KVServer, query: dict[str, list[str]], fault: str | None) -> tuple[Any, Any]:
    limit = int(query.get("limit", ["1000"])[0])
    if not 10 <= limit <= 1000:
        raise Refusal(400, 10001, "limit: expected a number from 10 to 1000")
    # A cursor holds its place and a serial number, so that none is like the one before.
    place = base64.urlsafe_b64decode(query.get("cursor", [""])[0]).decode()
    serial, _, after = place.partition(" ")
    page, has_more = kv.page(query.get("prefix", [""])[0], after, limit)
    if fault == "empty_page":
        page, has_more = [], True
    if not has_more:
        return page, {"count": len(page), "cursor": ""}
    place = f"{int(serial or 0) + 1} {page[-1]['name'] if page else after}"
    cursor = base64.urlsafe_b64encode(place.encode()).decode()
    return page, {"count": len(page), "cursor": cursor}


def _bulk_get(kv: KVServer, request: Any) -> dict[str, Any]:
    keys = request.get("keys") if isinstance(request, dict) else None
    if not isinstance(keys, list) or not 1 <= len(keys) <= 100:
        raise Refusal(400, 10001, "keys: expected 1 to 100 of them")
    with kv.lock:
        found = {key: kv.read(key) for key in keys}
    if not (kv.with_metadata and request.get("withMetadata")):
        return {key: value and value[0] for key, value in found.items()}
    return {
        key: value and {"value": value[0], "metadata": value[1]} for key, value in found.items()
    }


def _bulk(
    kv: KVServer, changes: list[tuple[str, Value | None]], fault: str | None
) -> tuple[Any, Any, int]:
    failed: list[tuple[str, Value | None]] = []
    if len({key for key, _ in changes}) < len(changes):
        raise Refusal(400, 10001, "a key is there twice")
    # A single pair is never "one of those that were too many".
    if fault == "partial" or (fault == "413_partial" and len(changes) > 1):
        failed, changes = changes[::2], changes[1::2]
    kv.write(changes)
    told = {"successful_key_count": len(changes), "unsuccessful_keys": [key for key, _ in failed]}
    return told, None, 413 if fault == "413_partial" and failed else 200


def _single(kv: KVServer, method: str, key: str, body: bytes) -> Any:
    if method == "GET":
        value = kv.read(key)
        if value is None:
            raise Refusal(404, 10009, "key not found")
        return value[0]
    kv.write([(key, None if method == "DELETE" else (body.decode(), None))])
    return None


def parsed_body(body: bytes, most: int | None = None) -> Any:
    try:
        parsed = json.loads(body)
    except ValueError:
        raise Refusal(400, 10001, "the body is no JSON") from None
    if most is not None and not (isinstance(parsed, list) and 1 <= len(parsed) <= most):
        raise Refusal(400, 10001, f"expected 1 to {most} items")
    return parsed


def _checked_pair(pair: dict[str, Any]) -> tuple[str, Value]:
    key, value, metadata = pair["key"], pair["value"], pair.get("metadata")
    if not 0 < len(key.encode()) <= 512 or key in (".", "..") or not isinstance(value, str):
        raise Refusal(400, 10001, f"not a pair: {key[:40]}")
    if metadata is not None and len(json.dumps(metadata, separators=(",", ":"))) > 1024:
        raise Refusal(400, 10001, "metadata: larger than 1024 bytes")
    return key, (value, metadata)


def _envelope(success: bool, errors: list[Any], result: Any, info: Any) -> bytes:
    document = {"success": success, "errors": errors, "messages": [], "result": result}
    if info is not None:
        document["result_info"] = info
    return json.dumps(document, ensure_ascii=False).encode()


def _success(result: Any, info: Any, status: int) -> Answer:
    return Answer(status, _envelope(status == 200, [], result, info))


def _refusal(refusal: Refusal) -> Answer:
    error = {"code": refusal.code, "message": refusal.message}
    return Answer(refusal.status, _envelope(False, [error], None, None))


def _failing(fault: str) -> Answer:
    status, _, wait = fault.partition(":")
    if status == "429":
        answer = _refusal(Refusal(429, 971, "Please wait and consider throttling your requests"))
        return answer._replace(headers=(("Retry-After", wait),)) if wait else answer
    return Answer(int(status), b"<html><h1>Error</h1></html>", "text/html")
