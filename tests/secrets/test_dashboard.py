"""The canary token and the dashboard: it is in no answer of any route, and nothing that is said."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from nimbus_tasks.dashboard.app import STATIC
from tests.factories import REPOSITORY, environment_for, invoke_command
from tests.kv.kv_server import KVServer
from tests.secrets.test_token import (
    FAULTS,
    SAYS_TOKEN,
    TOKEN,
    assert_in_no_file,
    assert_nowhere,
    root,
    run,
    server,
)

__all__ = ["root", "server"]

PAGE = "dist/page-000.html"


class Asked:
    """A dashboard in a process of its own; no answer of it may have the token."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.origin = "/".join(url.split("/")[:3])

    def ask(self, path: str, method: str = "GET", body: object = None, status: int = 200) -> str:
        """The text of an answer of that status."""
        answer = requests.request(
            method,
            self.url + path,
            data=None if body is None else json.dumps(body),
            headers={"Origin": self.origin, "X-Nimbus-Action": "1"} if method == "POST" else {},
            timeout=60,
        )
        assert_nowhere(f"{answer.headers}\n{answer.text}", path)
        assert answer.status_code == status, (path, answer.text)
        return answer.text

    def event(self, name: str, path: str = "events") -> str:
        """The data of the first event of that name."""
        with closing(requests.get(self.url + path, stream=True, timeout=60)) as answer:
            lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
            for line in lines:
                assert_nowhere(line, path)
                if line == f"event: {name}":
                    data = next(lines)
                    assert_nowhere(data, path)
                    return str(data)
        raise AssertionError(f"no {name}")


@contextmanager
def dashboard(root: Path) -> Iterator[Asked]:
    """It is served while everything is logged; what it has said and written is looked through."""
    said = root.parent / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            invoke_command(root, "nimbus.dashboard", "--no-open", "--interval=0.1"),
            cwd=root,
            env=environment_for(
                CLOUDFLARE_API_TOKEN=TOKEN, PYTHONPATH=f"{root.parent / 'noisy'}:{REPOSITORY}"
            ),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://\S+/", said.read_text(encoding="utf-8"))):
            assert time.monotonic() < deadline
            assert process.poll() is None, said.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield Asked(found[0])
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_in_no_file(root.parent)


@pytest.fixture
def batch(root: Path, server: KVServer) -> str:
    """A batch of two pages that failed while the processor said the token."""
    (root / "says.py").write_text(SAYS_TOKEN)
    chain = ("nimbus.upload", "nimbus.worker", "--processor=says:process", "--max-attempts=1")
    assert run(root, *chain).returncode == 0
    (key,) = [key for key in server.data if key.startswith("batch:")]
    return key.rpartition(":")[2]


def test_in_no_route(root: Path, server: KVServer, batch: str) -> None:
    static = [path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.*")]
    with dashboard(root) as asked:
        for path in ("", "project", "static/colours.css", *(f"static/{name}" for name in static)):
            assert asked.ask(path)
        asked.ask("none", status=404)
        asked.ask(f"batches/{batch}/retry", status=405)
        asked.ask(f"batches/{batch}/retry", "POST", {"code": 5}, status=400)
        assert batch in asked.event("look")
        assert "refused: Bearer ***" in asked.event("look", f"events?batch={batch}")
        assert "there is no batch" in asked.event("fault", "events?batch=none")
        assert "refused: Bearer ***" in asked.ask(f"batches/{batch}/log?page={PAGE}")
        assert len(json.loads(asked.ask(f"batches/{batch}/retry", "POST", {}))["requeued"]) == 2
        asked.ask(f"batches/{batch}/cancel", "POST", {"reason": "no more"})
    assert {seen["Authorization"] for seen in server.seen} == {f"Bearer {TOKEN}"}


def test_in_no_fault_of_the_store(root: Path, server: KVServer, batch: str) -> None:
    with dashboard(root) as asked:
        for fault in FAULTS:
            server.faults = lambda _, one=fault: FAULTS[one]
            assert '"message": "' in asked.event("fault")
            assert '"message": "' in asked.event("fault", f"events?batch={batch}")
            asked.ask(f"batches/{batch}/log?page=dist/none.html", status=503)
            asked.ask(f"batches/{batch}/retry", "POST", {}, status=503)
            asked.ask(f"batches/{batch}/cancel", "POST", {}, status=503)
