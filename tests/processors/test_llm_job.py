"""The llm processor on whole batches, through the real command line, against a local endpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.keys import logs_prefix, page_prefix
from nimbus_tasks.core.logs import read_logs
from nimbus_tasks.core.project import Project
from tests.factories import REPOSITORY, a_map, environment_for, invoke, write_map
from tests.processors.llm_server import GOOD, LlmServer, Reply, in_turn, refuses, says
from tests.secrets.test_token import NOISY

CANARY = "sk-cnry-Q7xZk3vW9pLm2RtY8sBd6Hf"
WORKER = ("nimbus.worker", "--processor=llm")


@pytest.fixture
def server() -> Iterator[LlmServer]:
    with LlmServer() as running:
        yield running


def run(
    project: Project, server: LlmServer, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command with the endpoint's settings; the key is nowhere in what it leaves behind."""
    (project.root / "invoke.yaml").write_text(
        f"nimbus:\n  llm:\n    base_url: {server.base_url}\n    model: small\n"
        "    price_in: 0.15\n    price_out: 0.6\n"
    )
    environment.setdefault("NIMBUS_LLM_API_KEY", CANARY)
    ran = invoke(project.root, *arguments, timeout=60, **environment)
    assert CANARY[:16] not in ran.stdout + ran.stderr
    for path in project.root.rglob("*"):
        assert not path.is_file() or CANARY[:16].encode() not in path.read_bytes(), path
    assert "Traceback" not in ran.stderr
    return ran


def counts(project: Project) -> dict[str, int]:
    with project.open_store() as store:
        counted = view_batch(project, store).tally.counts
    return {state: count for state, count in counted.items() if count}


def test_the_sample_pages_from_upload_to_report(project: Project, server: LlmServer) -> None:
    shutil.copytree(REPOSITORY / ".nimbus" / "maps", project.folder / "maps")
    ran = run(project, server, "nimbus.upload", *WORKER, "--concurrency=8", "nimbus.batch.report")
    assert ran.returncode == 0, ran.stderr
    assert "22 pages done, 0 failed" in ran.stdout
    assert "tokens in        22,000" in ran.stdout
    assert "tokens out       2,200" in ran.stdout
    assert "cost             0.00462" in ran.stdout
    report = json.loads(run(project, server, "nimbus.batch.report", "--json").stdout)
    metrics = json.loads(run(project, server, "nimbus.batch.metrics", "--json").stdout)
    usage = {"pages": 22, "tokens_in": 22_000, "tokens_out": 2200, "cost": 0.00462}
    assert (report["metrics"]["usage"], metrics["usage"]) == (usage, usage)
    assert (metrics["total_changes"], metrics["average_confidence"]) == (44, 0.8)
    assert len(server.requests) == 22
    assert {r.headers["Authorization"] for r in server.requests} == {f"Bearer {CANARY}"}
    with project.open_store() as store:
        page = json.loads(next(iter(store.get_many(_keys(store, page_prefix)).values())).value)
        logs = read_logs(next(iter(store.get_many(_keys(store, logs_prefix)).values())))
    assert page["optimization"]["processor"] == "llm"
    assert page["optimization"]["findings"][0]["after"] == GOOD["title"]
    (answer,) = [entry for entry in logs if entry["step"] == "answer"]
    spent = {"model": "small", "tokens_in": 1000, "tokens_out": 100, "cost": 0.00021}
    assert answer["data"] == spent


def _keys(store: Any, prefix: Any) -> list[str]:
    return [info.key for info in store.scan(prefix("proj_0123456789ab"))]


def test_one_bad_page_of_each_kind_among_good_ones(
    project: Project, server: LlmServer, maps: Path
) -> None:
    bad = {
        "dist/page-000.html": says("rubbish"),
        "dist/page-001.html": refuses(400, f"content policy {CANARY}"),
        "dist/page-002.html": says({**GOOD, "title": "<b>x</b>"}),
    }
    write_map(maps, "huge.json", a_map("dist/huge.html", head={"title": "x" * 2**20}))

    def reply(request: Any) -> Reply:
        asked = request.body["messages"][1]["content"]
        return next((bad[path] for path in bad if path in asked), says(GOOD))

    server.reply = reply
    ran = run(project, server, "nimbus.upload", *WORKER, "--exit-status")
    assert ran.returncode == 3, ran.stderr
    assert "bad_answer" in ran.stderr
    assert counts(project) == {"done": 8, "failed": 3}
    report = json.loads(run(project, server, "nimbus.batch.report", "--json").stdout)
    codes = {page["path"]: page["code"] for page in report["pages"] if page["code"]}
    assert codes == dict(zip(bad, ["bad_answer", "llm_refused", "bad_answer"], strict=True))
    # What the two bad answers each took is paid for as well: two tries of two pages.
    assert report["metrics"]["usage"]["tokens_in"] == 12_000


def test_the_sums_are_of_all_attempts(project: Project, server: LlmServer) -> None:
    """The first asks twice for a good answer, and fails; what it took is paid for as well."""
    write_map(project.folder / "maps", "a.json", a_map())
    server.reply = in_turn(says("rubbish"), says("rubbish"), says(GOOD))
    ran = run(project, server, "nimbus.upload", *WORKER, "--exit-status")
    assert ran.returncode == 3, ran.stderr
    ran = run(project, server, "nimbus.batch.retry", *WORKER, "nimbus.batch.metrics", "--json")
    metrics = json.loads("{" + ran.stdout.rpartition("\n{")[2])
    assert metrics["usage"] == {"pages": 1, "tokens_in": 3000, "tokens_out": 300, "cost": 0.00063}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (refuses(429, "slow", ("Retry-After", "1")), "is at its limit: all wait 1 s"),
        (refuses(500), "next try in"),
    ],
)
def test_a_fault_on_the_way_costs_a_wait_and_no_page(
    project: Project, server: LlmServer, maps: Path, fault: Reply, told: str
) -> None:
    server.reply = in_turn(fault, says(GOOD))
    ran = run(project, server, "nimbus.upload", *WORKER, "--concurrency=8", "--exit-status")
    assert ran.returncode == 0, ran.stderr
    assert told in ran.stderr
    assert counts(project) == {"done": 10}


@pytest.mark.parametrize(
    ("reply", "told", "code"),
    [
        (refuses(401, f"Incorrect API key: {CANARY}"), "does not accept the key", 2),
        (refuses(404, "no such model"), "does not know the model", 2),
        (refuses(429, "tomorrow", ("Retry-After", "7200")), "asks to wait 120 minutes", 5),
    ],
)
def test_what_no_page_gets_past_gives_all_pages_back(
    project: Project, server: LlmServer, maps: Path, reply: Reply, told: str, code: int
) -> None:
    assert run(project, server, "nimbus.upload").returncode == 0
    server.reply = lambda request: says(GOOD) if request.number < 3 else reply
    ran = run(project, server, *WORKER, "--concurrency=1")
    assert ran.returncode == code, ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if told in line]
    assert line.startswith("❌ ")
    assert counts(project) == {"queued": 7, "done": 3}
    server.reply = lambda _: says(GOOD)
    assert run(project, server, *WORKER).returncode == 0
    assert counts(project) == {"done": 10}
    with project.open_store() as store:
        assert view_batch(project, store).tally.attempts == 10


def test_the_key_is_in_no_command_line_and_no_debug_output(
    project: Project, server: LlmServer, maps: Path, tmp_path: Path
) -> None:
    seen: list[bytes] = []

    def reply(_: object) -> Reply:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
        seen.append(b"|".join(lines))
        return refuses(500, f"Bearer {CANARY}")._replace(status=400)

    server.reply = reply
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(NOISY)
    command = ("-d", "nimbus.upload", *WORKER, "--concurrency=1")
    ran = run(project, server, *command, PYTHONPATH=f"{noisy}:{REPOSITORY}")
    assert "DEBUG:urllib3" in ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert counts(project) == {"failed": 10}
    assert b"--processor=llm" in seen[0]
    assert CANARY.encode() not in b"".join(seen)


# --- dry run ---


def test_a_dry_run_shows_the_prompt_and_does_nothing(
    project: Project, server: LlmServer, maps: Path
) -> None:
    assert run(project, server, "nimbus.upload").returncode == 0
    before = project.store_path.read_bytes()
    ran = run(project, server, *WORKER, "--dry-run", "--batch=latest", NIMBUS_LLM_API_KEY="")
    assert ran.returncode == 0, ran.stderr
    assert f"dist/page-000.html: small at {server.base_url}/chat/completions" in ran.stdout
    assert '"headings":["A heading"]' in ran.stdout
    assert "Nothing was claimed, written or sent." in ran.stdout
    document = json.loads(run(project, server, *WORKER, "--dry-run", "--json").stdout)
    assert document["path"] == "dist/page-000.html"
    assert server.requests == []
    assert project.store_path.read_bytes() == before
    assert counts(project) == {"queued": 10}
    assert run(project, server, *WORKER).returncode == 0
    assert document["request"] in [request.body for request in server.requests]


@pytest.mark.parametrize("other", ["--processor=audit", "--command=cat", "--processor=json:loads"])
def test_what_has_no_prompt_has_no_dry_run(project: Project, server: LlmServer, other: str) -> None:
    ran = run(project, server, "nimbus.worker", other, "--dry-run")
    assert ran.returncode == 2
    assert "has no prompt to show" in ran.stderr


def test_a_dry_run_without_a_queued_page(project: Project, server: LlmServer, maps: Path) -> None:
    run(project, server, "nimbus.upload", *WORKER)
    ran = run(project, server, *WORKER, "--dry-run")
    assert ran.returncode == 4
    assert "no page is queued" in ran.stderr


def test_a_dry_run_says_what_of_the_page_is_not_sent(project: Project, server: LlmServer) -> None:
    block = {"type": "p", "selector": "p", "text": "word " * 250_000}
    write_map(project.folder / "maps", "long.json", a_map(blocks=[block]))
    ran = run(project, server, "nimbus.upload", *WORKER, "--dry-run")
    assert ran.returncode == 0, ran.stderr
    assert "It has more text than is sent: the first 6,000 characters." in ran.stdout
    assert len(ran.stdout) < 15_000


# --- an end before the answer ---


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT can be sent to one process there")
def test_ctrl_c_does_not_wait_for_a_server_that_is_at_its_limit(
    project: Project, server: LlmServer, maps: Path
) -> None:
    """Once lets the pages in flight end; twice gives them back, in the middle of their wait."""
    server.reply = in_turn(refuses(429, "slow", ("Retry-After", "250")))
    assert run(project, server, "nimbus.upload").returncode == 0
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", *WORKER, "--concurrency=2"],
        cwd=project.root,
        env=environment_for(NIMBUS_LLM_API_KEY=CANARY),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        assert any("all wait" in line for line in worker.stderr)
        worker.send_signal(signal.SIGINT)
        assert any("Ctrl-C" in line for line in worker.stderr)
        worker.send_signal(signal.SIGINT)
        told = worker.stderr.read()
        assert worker.wait(20) == 130
    assert "went back to the queue" in told
    assert "Traceback" not in told
    assert counts(project) == {"queued": 10}


# --- settings ---


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("api_key: abc", "nimbus.llm has no setting 'api_key'"),
        ("temperature: 3", "nimbus.llm.temperature takes a number from 0 to 2, not '3'"),
        ("price_in: cheap", "nimbus.llm.price_in takes a number from 0"),
        ("price_in: nan", "nimbus.llm.price_in takes a number from 0"),
        ("max_tokens: 0", "nimbus.llm.max_tokens takes a whole number"),
        ("timeout: -1", "nimbus.llm.timeout takes seconds above 0"),
        ("base_url: nowhere", "nimbus.llm.base_url is no http or https address"),
        ("model: 4", "nimbus.llm.model takes a text"),
        ("language: ''", "nimbus.llm.language is empty"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    project: Project, maps: Path, setting: str, told: str
) -> None:
    lines = {"model": "model: small", setting.partition(":")[0]: setting}
    body = "".join(f"    {line}\n" for line in lines.values())
    (project.root / "invoke.yaml").write_text(f"nimbus:\n  llm:\n{body}")
    ran = invoke(project.root, "nimbus.upload", *WORKER, OPENAI_API_KEY=CANARY)
    assert ran.returncode == 2
    assert told in ran.stderr
    assert "abc" not in ran.stderr
    assert counts(project) == {"queued": 10}


def test_the_environment_sets_what_no_file_does(project: Project, server: LlmServer) -> None:
    write_map(project.folder / "maps", "a.json", a_map())
    settings = {
        "INVOKE_NIMBUS_LLM_BASE_URL": f"{server.base_url}/",
        "INVOKE_NIMBUS_LLM_MODEL": "other",
        "INVOKE_NIMBUS_LLM_TEMPERATURE": "0.2",
        "INVOKE_NIMBUS_LLM_LANGUAGE": "Welsh",
        "NIMBUS_LLM_API_KEY": "",
    }
    ran = invoke(project.root, "nimbus.upload", *WORKER, "--exit-status", timeout=60, **settings)
    assert ran.returncode == 0, ran.stderr
    (request,) = server.requests
    assert (request.body["model"], request.body["temperature"]) == ("other", 0.2)
    assert "in this language: Welsh" in request.body["messages"][0]["content"]
    assert "Authorization" not in request.headers


def test_without_a_key_or_a_model_nothing_begins(project: Project, maps: Path) -> None:
    keyless = {"NIMBUS_LLM_API_KEY": "", "OPENAI_API_KEY": ""}
    ran = invoke(project.root, "nimbus.upload", *WORKER, timeout=60, **keyless)
    assert ran.returncode == 2
    assert "INVOKE_NIMBUS_LLM_MODEL" in ran.stderr
    keyless["INVOKE_NIMBUS_LLM_MODEL"] = "small"
    ran = invoke(project.root, *WORKER, timeout=60, **keyless)
    assert ran.returncode == 2
    assert "there is no key for api.openai.com · Set NIMBUS_LLM_API_KEY" in ran.stderr
    assert counts(project) == {"queued": 10}
