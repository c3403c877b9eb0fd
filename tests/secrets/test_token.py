"""A canary token driven through every command and every fault: nowhere may it be read."""

from __future__ import annotations

import base64
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.cloudflare.secret import without_secret
from tests.factories import REPOSITORY, environment_for, invoke, invoke_command, project_on_kv
from tests.kv.kv_server import Answer, Call, KVServer

TOKEN = "cnry+Q7/x=Zk3vW9&pLm2RtY8sBd6HfJ4nGc1"
FORMS = (
    TOKEN,
    TOKEN[:16],
    quote(TOKEN, safe=""),
    *(base64.b64encode(b"Bearer "[:n] + TOKEN.encode()).decode()[8:-4] for n in (0, 1, 2, 7)),
)
#: Everything at once that a program may have switched on to see what goes over the line.
NOISY = (
    "import http.client, logging\n"
    "http.client.HTTPConnection.debuglevel = 1\n"
    "logging.basicConfig(level=logging.DEBUG)\n"
)
#: As a build chains them; each chain ends with a task that may have an exit code of its own.
CHAINS = [
    "doctor upload worker batch batch.status batch.list batch.monitor+--once batch.report"
    " batch.metrics batch.wait+--timeout=1",
    "upload+--dry-run upload batch.retry batch.cancel+--batch=latest batch.verify+--repair",
    "init+--force",
]


def assert_nowhere(text: str | bytes, where: object) -> None:
    shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
    assert [form for form in FORMS if form in shown] == [], where


def assert_in_no_file(*folders: Path) -> None:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                assert_nowhere(path.read_bytes(), path)


def tasks(chain: str, option: str = "") -> list[str]:
    """What is typed for a chain of tasks, each with the option."""
    typed = []
    for words in chain.split():
        name, *options = words.split("+")
        typed += [f"nimbus.{name}", *options, *([option] if option else [])]
    return typed


@pytest.fixture
def server() -> Iterator[KVServer]:
    with KVServer(token=TOKEN) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, server: KVServer) -> Path:
    """A project on that server, in whose processes everything is logged."""
    root = tmp_path / "project"
    root.mkdir()
    project_on_kv(root, server.namespace, server.prefix, maps=2)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "sitecustomize.py").write_text(NOISY)
    return root


def run(root: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """A command; neither its output nor a file that it left has the token."""
    ran = invoke(
        root,
        *arguments,
        CLOUDFLARE_API_TOKEN=token,
        TMPDIR=str(root.parent / "tmp"),
        PYTHONPATH=f"{root.parent / 'noisy'}:{REPOSITORY}",
    )
    assert_nowhere(ran.stdout + ran.stderr, (arguments, ran.stdout, ran.stderr))
    assert_in_no_file(root.parent)
    return ran


@pytest.mark.parametrize(("first", "option"), [("", ""), ("", "--json"), ("-d", "")])
def test_in_nothing_that_goes_well(root: Path, server: KVServer, first: str, option: str) -> None:
    for chain in CHAINS:
        ran = run(root, *([first] if first else []), *tasks(chain, option))
        assert ran.returncode in (0, 3), (chain, ran.returncode, ran.stderr[-2000:])
        assert "❌" not in ran.stderr, chain
    assert {seen["Authorization"] for seen in server.seen} == {f"Bearer {TOKEN}"}


def test_in_no_help(root: Path) -> None:
    for name in ("doctor", "init", "worker", "batch.status"):
        assert run(root, "--help", f"nimbus.{name}").returncode == 0
    assert run(root, "--list").returncode == 0


def test_on_no_terminal(root: Path) -> None:
    for command in ("upload worker", "batch.monitor+--once batch.report", "guide cloud.init"):
        main, side = pty.openpty()
        process = subprocess.Popen(
            invoke_command(root, *tasks(command)),
            cwd=root,
            env=environment_for(CLOUDFLARE_API_TOKEN=TOKEN),
            stdin=side,
            stdout=side,
            stderr=side,
        )
        os.close(side)
        shown = b""
        try:
            while chunk := os.read(main, 65536):
                shown += chunk
        except OSError:  # Linux's way of saying that the other end is closed
            pass
        os.close(main)
        assert process.wait(60) == 0, shown
        assert_nowhere(shown, command)
    assert_in_no_file(root.parent)


ECHO = (
    f"<html>Authorization: Bearer {TOKEN} {TOKEN[:20]}… {quote(TOKEN, safe='')}"
    f" {base64.b64encode(f'Bearer {TOKEN}'.encode()).decode()}</html>"
).encode()
REFUSAL = b'{"success":false,"errors":[{"code":%d,"message":"no: %s"}]}'
SHORT_ECHO = TOKEN.encode()
FAULTS = {
    "a page that echoes": Answer(200, ECHO, "text/html"),
    "a header that echoes": Answer(200, b"", f"text/{TOKEN}"),
    "401": Answer(401, REFUSAL % (10000, SHORT_ECHO)),
    "400": Answer(400, REFUSAL % (6003, SHORT_ECHO[:20])),
    "403": Answer(403, REFUSAL % (9109, base64.b64encode(b"Bearer " + SHORT_ECHO))),
    "403 of a permission": Answer(403, REFUSAL % (10000, quote(TOKEN, safe="").encode())),
    "404": Answer(404, REFUSAL % (7003, SHORT_ECHO)),
    "418": Answer(418, REFUSAL % (1, SHORT_ECHO)),
    "429 for today": Answer(429, REFUSAL % (10048, SHORT_ECHO)),
    "a redirect": Answer(302, ECHO, "text/html", (("Location", f"/x?{TOKEN}"),)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_in_no_fault(root: Path, server: KVServer, fault: str) -> None:
    server.faults = lambda _: FAULTS[fault]
    for command in ("upload", "doctor"):
        ran = run(root, *tasks(command))
        assert ran.returncode == 5, ran.stderr
        assert "Traceback" not in ran.stderr


def test_in_no_fault_that_is_retried(root: Path, server: KVServer) -> None:
    plan = [Answer(500, ECHO, "text/html"), Answer(503, ECHO), "429:0", "reset_before", "cut"]

    def faults(call: Call) -> Any:
        return plan[call.number] if call.number < len(plan) else None

    server.faults = faults
    assert run(root, "nimbus.doctor").returncode == 0
    assert len(server.requests) > len(plan)


def test_where_a_redirect_leads_the_token_does_not_follow(root: Path, server: KVServer) -> None:
    with KVServer() as other:
        location = f"{other.url.replace('127.0.0.1', 'localhost')}/client/v4/accounts"
        for status in (301, 302, 303, 307, 308):
            server.faults = lambda _, s=status: Answer(s, b"", headers=(("Location", location),))
            ran = run(root, "nimbus.batch.status")
            assert "redirects elsewhere" in ran.stderr
            assert ran.returncode == 5
        assert other.requests == []


def test_where_no_secure_connection_is_made(root: Path, server: KVServer) -> None:
    """A server that speaks no TLS gets nothing but the beginning of a handshake."""
    project_on_kv(root, server.namespace, server.prefix.replace("http:", "https:"))
    ran = run(root, "nimbus.batch.status")
    assert ran.returncode == 5
    assert "no secure connection" in ran.stderr
    assert server.seen == []


@pytest.mark.parametrize("end", ["\n", " ", "\r\n", "\x1b[0m", "\u00e9", "\t"])
def test_a_token_with_something_pasted_behind_it(root: Path, server: KVServer, end: str) -> None:
    ran = run(root, "nimbus.upload", token=TOKEN + end)
    (line,) = [line for line in ran.stderr.splitlines() if not line.startswith("DEBUG:")]
    assert "CLOUDFLARE_API_TOKEN" in line
    assert ran.returncode == 2
    assert server.requests == []


def test_in_no_traceback_of_a_fault_of_our_own(root: Path) -> None:
    """Not even one that is raised where the headers are at hand."""
    noisy = root.parent / "noisy" / "sitecustomize.py"
    noisy.write_text(
        f"{NOISY}import requests\n\n\ndef send(self, request, **kwargs):\n"
        "    raise RuntimeError(f'a fault of {request}')\n\n\nrequests.Session.send = send\n"
    )
    ran = run(root, "nimbus.batch.status")
    assert ran.returncode == 1
    assert "RuntimeError" in ran.stderr


# --- processors ---

SAYS_TOKEN = (
    "import os\n\n\nTOKEN = os.environ['CLOUDFLARE_API_TOKEN']\n\n\n"
    "def process(page, progress):\n    progress(TOKEN, 10, f'asks with {TOKEN}', header=TOKEN)\n"
    "    raise ValueError(f'refused: Bearer {TOKEN}')\n"
)


def test_not_where_a_processor_says_it(root: Path, server: KVServer) -> None:
    (root / "says.py").write_text(SAYS_TOKEN)
    assert run(root, "nimbus.upload").returncode == 0
    run(root, "nimbus.worker", "--processor=says:process", "--max-attempts=1")
    run(root, "nimbus.batch.report")
    assert any("refused: Bearer ***" in value for value, _ in server.data.values())
    assert_nowhere(str(server.data), "the store")


def test_a_command_does_not_get_it_and_nobody_sees_it_in_a_command_line(
    root: Path, server: KVServer
) -> None:
    (root / "seen.py").write_text(
        "import os, pathlib, sys\n\n"
        "lines = [p.read_bytes() for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')]\n"
        "pathlib.Path('seen').write_bytes(b'|'.join(lines) + repr(dict(os.environ)).encode())\n"
        "print('{}')\n"
    )
    command = f"--command={sys.executable} seen.py; env >&2"
    assert run(root, "nimbus.upload").returncode == 0
    ran = run(root, "nimbus.worker", command, "--concurrency=1")
    assert ran.returncode == 0, ran.stderr
    seen = (root / "seen").read_text()
    assert "NIMBUS_PAGE_ID" in seen
    assert "CLOUDFLARE_API_TOKEN" not in seen
    assert_nowhere(str(server.data), "the store")


def test_with_the_embedded_store_the_variable_is_the_commands_own(
    project: Project, maps: Path
) -> None:
    save = "printf %s \"$CLOUDFLARE_API_TOKEN\" > got; echo '{}'"
    ran = invoke(
        project.root,
        "nimbus.upload",
        "nimbus.worker",
        f"--command={save}",
        CLOUDFLARE_API_TOKEN=TOKEN,
    )
    assert ran.returncode == 0, ran.stderr
    assert (project.root / "got").read_text() == TOKEN


@pytest.mark.parametrize("before", ["", "x", "xy", "Bearer ", "user:"])
def test_every_form_of_it_is_masked(before: str) -> None:
    encoded = base64.b64encode(f"{before}{TOKEN} and more".encode()).decode()
    for text in (TOKEN, TOKEN[:16], quote(TOKEN, safe=""), encoded, f"{TOKEN}{TOKEN}"):
        masked = without_secret(f"it is {text}, you see", TOKEN)
        assert_nowhere(masked, text)
        assert masked.startswith("it is ")
        assert masked.endswith(", you see")


def test_one_that_is_no_text_is_masked_as_well() -> None:
    secret = "\udcff-token-of-mine"
    for text in (secret, "%FF-token-of-mine"):
        assert without_secret(f"it is {text}, you see", secret) == "it is ***, you see"


@pytest.mark.parametrize("secret", ["*", "***", "a", "", None])
def test_a_short_secret_is_masked_only_where_it_is_whole(secret: str | None) -> None:
    assert without_secret("it is", secret) == "it is"
    if secret:
        assert without_secret(f"<{secret}>", secret) == "<***>"
