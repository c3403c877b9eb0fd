"""The service that the ``http`` processor asks: what it does to a page is in the page's path."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

GOOD: dict[str, Any] = {"changes": 2, "confidence": 0.75, "optimization": {"title": "better"}}
#: Status, body and headers by a word in the path.
ANSWERS: Mapping[str, tuple[int, str, dict[str, str]]] = {
    "throws": (500, "no", {}),
    "rubbish": (200, "<html>", {}),
    "list": (200, "[1]", {}),
    "boast": (200, '{"confidence": 7}', {}),
    "negative": (200, '{"changes": -1}', {}),
    "says": (200, '{"error": {"message": "too thin", "code": "thin"}}', {}),
    "moved": (302, "", {"Location": "http://127.0.0.1:9/"}),
}


class Service:
    """Counts what it is asked; ``gate`` holds every answer until it is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.secrets: set[str | None] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.mended = False
        #: What the model says, and what it was asked.
        self.chat: dict[str, Any] | str = {}
        self.prompts: list[dict[str, Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                page = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body, headers = service.answer(page, self.headers["Authorization"])
                data = body.encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                with suppress(OSError):  # whoever asked did not wait
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def answer(self, page: dict[str, Any], secret: str | None) -> tuple[int, str, dict[str, str]]:
        """What is answered for a page record, or to a chat."""
        if "messages" in page:
            self.prompts.append(page)
            self.secrets.add(secret)
            said = self.chat if isinstance(self.chat, str) else json.dumps(self.chat)
            usage = {"prompt_tokens": 590, "completion_tokens": 80}
            return (
                200,
                json.dumps({"choices": [{"message": {"content": said}}], "usage": usage}),
                {},
            )
        path = page["source_path"]
        self.asked[path] += 1
        self.secrets.add(secret)
        self.gate.wait(30)
        if self.mended:
            return 200, json.dumps(GOOD), {}
        if "hangs" in path:
            threading.Event().wait(5)
        if "busy" in path and self.asked[path] == 1:
            return 429, "", {"Retry-After": "1"}
        if "cut" in path and self.asked[path] == 1:
            return 200, "{", {"Content-Length": "99", "Connection": "close"}
        if "always-full" in path:
            return 503, "", {"Retry-After": "1"}
        for word, answer in ANSWERS.items():
            if word in path:
                return answer
        return 200, json.dumps(GOOD), {}

    def __enter__(self) -> Service:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
