"""An OpenAI-compatible chat endpoint on this machine, which answers as a test has it answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

#: An answer that nothing is wrong with.
GOOD = {
    "title": "Handmade stoneware from Nether Thistlewick",
    "title_confidence": 0.9,
    "description": "Mugs, bowls and teapots, thrown and glazed by hand in a small pottery, and"
    " what became of the kiln.",
    "description_confidence": 0.7,
}


class Reply(NamedTuple):
    """What is sent back. ``delay`` seconds pass before it; ``is_short`` breaks it off halfway."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    is_short: bool = False


def says(content: object, **choice: Any) -> Reply:
    """A completion whose message is ``content``: a text, or what is written as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    document = {"choices": [{"message": message, "finish_reason": "stop", **choice}]}
    return Reply(200, json.dumps({**document, "usage": usage}).encode())


def refuses(status: int, message: str = "no", *headers: tuple[str, str], **error: Any) -> Reply:
    """An error as the API has it."""
    document = {"error": {"message": message, **error}}
    return Reply(status, json.dumps(document).encode(), headers)


class Request(NamedTuple):
    """What was asked, by whom and when: ``number`` from 0, ``at`` in seconds."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


class LlmServer:
    """The server; ``reply`` is asked for every answer."""

    def __init__(self, reply: Callable[[Request], Reply] = lambda _: says(GOOD)) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(size))
                self._send(server._asked(self.path, dict(self.headers.items()), body))

            def _send(self, reply: Reply) -> None:
                if reply.delay:
                    time.sleep(reply.delay)
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                half = len(reply.body) // 2
                self.wfile.write(reply.body[:half] if reply.is_short else reply.body)
                self.close_connection = self.close_connection or reply.is_short

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that waits no longer

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def _asked(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        with self._lock:
            request = Request(len(self.requests), path, headers, body, time.monotonic())
            self.requests.append(request)
        return self.reply(request)

    def __enter__(self) -> LlmServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """These one after the other, the last one for ever."""
    return lambda request: replies[min(request.number, len(replies) - 1)]
