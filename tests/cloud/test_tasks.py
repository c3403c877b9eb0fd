"""``nimbus.cloud.init``, ``dev`` and ``deploy`` on the real command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nimbus_tasks.cloud.init import worker_name, write_worker
from nimbus_tasks.cloud.wrangler import last_words, load_worker, parse_jsonc
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.project import load_project, new_project, save_project
from tests.cloud.service import Service
from tests.factories import REPOSITORY, environment_for, invoke, invoke_command, write_maps
from tests.wrangler.installed import MODULES, need_wrangler, quiet_environment

MADE = "abcdefabcdefabcdefabcdefabcdefab"
URL = "https://pages.example.com/work"


def run(root: Path, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    ran = invoke(root, *arguments, timeout=60, **environment)
    assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr
    if code:
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
    return ran.stdout, ran.stderr


# --- init ---


@pytest.mark.parametrize("processor", ["http", "llm"])
def test_init_writes_a_worker_of_the_project(tmp_path: Path, processor: str) -> None:
    out, _ = run(tmp_path, "nimbus.cloud.init", f"--processor={processor}", "--json")
    written = json.loads(out)
    project = load_project(tmp_path)  # there was none: it is made
    worker = load_worker(tmp_path / "cloud")
    assert worker.project_id == project.project_id
    assert not worker.has_namespace
    assert worker.queues == (worker.name, f"{worker.name}-dead")
    assert {"index.js", "processor.js", "wrangler.jsonc", ".gitignore"} <= set(written["files"])
    assert f"/{processor}.js" in (tmp_path / "cloud" / "processor.js").read_text()
    assert "@" not in (tmp_path / "cloud" / "wrangler.jsonc").read_text()
    assert not list(tmp_path.glob(".cloud*"))


def test_only_the_dead_letters_queue_is_named_like_one(tmp_path: Path) -> None:
    """By that end the Worker knows which messages to bury: the pages of the other are worked on."""
    for project_id in ("walking-dead", "the_DEAD", "dead", f"{'x' * 46}-dead-letters"):
        name = worker_name(new_project(tmp_path, project_id=project_id))
        assert not name.endswith("-dead")
        assert len(name) <= 58


def test_what_it_says_to_type_next_can_be_typed(tmp_path: Path) -> None:
    out, _ = run(tmp_path, "nimbus.cloud.init", f"--folder={tmp_path}/my worker")
    assert "nimbus.cloud.dev --folder='my worker'" in out


def test_init_never_overwrites(tmp_path: Path) -> None:
    run(tmp_path, "nimbus.cloud.init", f"--url={URL}")
    mine = tmp_path / "cloud" / "processor.js"
    mine.write_text("export default mine;")
    _, err = run(tmp_path, "nimbus.cloud.init", code=2)
    assert "is there already" in err
    assert mine.read_text() == "export default mine;"
    assert load_worker(tmp_path / "cloud").variables["PROCESSOR_URL"] == URL


def test_init_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert "not known" in run(tmp_path, "nimbus.cloud.init", "--processor=magic", code=2)[1]
    assert "no use" in run(tmp_path, "nimbus.cloud.init", "--model=m", code=2)[1]
    for url in ("127.0.0.1:8080", "ftp://a.example/", "https://", "http://[::1"):
        assert "no address" in run(tmp_path, "nimbus.cloud.init", f"--url={url}", code=2)[1]
    assert list(tmp_path.iterdir()) == [tmp_path / "tasks.py"]
    run(tmp_path, "nimbus.init", "--queue=document")
    assert "queue of keys" in run(tmp_path, "nimbus.cloud.init", code=2)[1]


def test_the_processor_and_the_namespace_of_a_project_on_cloudflare(tmp_path: Path) -> None:
    where = ("--store=cloudflare", f"--namespace-id={MADE}", "--account-id=a")
    run(tmp_path, "nimbus.init", *where)
    run(tmp_path, "nimbus.cloud.init", "--folder=workers/pages")
    assert load_worker(tmp_path / "workers" / "pages").namespace_id == MADE


# --- dev ---


def test_from_nothing_to_a_local_batch_in_three_commands(tmp_path: Path) -> None:
    need_wrangler()
    write_maps(tmp_path / ".nimbus" / "maps", 12)
    path = f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**quiet_environment(tmp_path), "PATH": path}
    with Service() as service:
        run(tmp_path, "nimbus.cloud.init", f"--url={service.url}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        dev = subprocess.Popen(
            invoke_command(tmp_path, "nimbus.cloud.dev", f"--port={port}", "--every=0.5"),
            cwd=tmp_path,
            env=environment_for(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert dev.stdout is not None
            first, _, config, tasks, _ = (dev.stdout.readline().strip() for _ in range(5))
            assert f"http://127.0.0.1:{port}: the Worker runs" in first
            assert config == "export NIMBUS_CONFIG=cloud/dev.json"
            assert tasks.startswith("invoke nimbus.upload ")
            out, _ = run(tmp_path, *tasks.split()[1:], NIMBUS_CONFIG=config.split("=")[1])
            assert "done 12" in out
            assert load_project(tmp_path).store == "sqlite"  # it is left as it was
            told = json.loads((tmp_path / "cloud" / "dev.json").read_text())["cloudflare"]
            assert told["worker_namespace_id"] == told["namespace_id"]
        finally:
            dev.send_signal(signal.SIGINT)
            _, err = dev.communicate(timeout=60)
        assert dev.returncode == 130
        assert err.endswith("stopped: the Worker runs no more; what is in its KV stays\n")
        assert "Traceback" not in err
        with socket.socket() as gone:
            assert gone.connect_ex(("127.0.0.1", port)) != 0


def test_dev_says_what_is_missing(tmp_path: Path) -> None:
    assert "nimbus.cloud.init" in run(tmp_path, "nimbus.cloud.dev", code=2)[1]
    run(tmp_path, "nimbus.cloud.init")
    for name, program in (("no-node", ()), ("no-wrangler", ("node",))):
        (tmp_path / name).mkdir()
        for one in program:
            (tmp_path / name / one).symlink_to("/bin/true")
    assert (
        "Node is not installed"
        in run(tmp_path, "nimbus.cloud.dev", code=2, PATH=str(tmp_path / "no-node"))[1]
    )
    assert (
        "wrangler is not installed"
        in run(tmp_path, "nimbus.cloud.dev", code=2, PATH=str(tmp_path / "no-wrangler"))[1]
    )


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_maps(tmp_path / ".nimbus" / "maps", 1)
    _, err = run(tmp_path, "nimbus.upload", code=2, NIMBUS_CONFIG="cloud/dev.json")
    assert "NIMBUS_CONFIG names no file" in err
    assert not (tmp_path / "cloud").exists()


# --- deploy ---


class Account:
    """A project with a Worker, and a stand-in for wrangler."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tools = root / "tools"
        tools.mkdir()
        fake = tools / "wrangler"
        text = (REPOSITORY / "tests" / "cloud" / "fake_wrangler.py").read_text()
        fake.write_text(text.replace("/usr/bin/env python3", sys.executable))
        fake.chmod(0o755)
        (tools / "node").symlink_to("/bin/true")
        self.notes = root / "notes"
        self.environment = {"PATH": str(tools), "WRANGLER_NOTES": str(self.notes)}
        self.says: dict[str, tuple[int, str]] = {
            "kv namespace create": (0, f'  "kv_namespaces": [{{ "id": "{MADE}" }}]'),
            "queues info": (1, "✘ [ERROR] Queue does not exist."),
        }
        project = new_project(root)
        save_project(project)
        write_worker(project, root / "cloud", url=URL)

    def deploy(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        says = {"WRANGLER_SAYS": json.dumps(self.says)}
        environment = {"LLM_API_KEY": "", "PROCESSOR_SECRET": "", **environment}
        return run(
            self.root,
            "nimbus.cloud.deploy",
            *arguments,
            code=code,
            **self.environment | says | environment,
        )

    @property
    def told(self) -> list[dict[str, Any]]:
        if not self.notes.exists():
            return []
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    @property
    def commands(self) -> list[str]:
        return [note["arguments"] for note in self.told]


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def test_deploy_makes_what_is_missing(account: Account) -> None:
    name = load_worker(account.root / "cloud").name
    before = (account.root / "cloud" / "wrangler.jsonc").read_text()
    _, err = account.deploy("--json", PROCESSOR_SECRET="hush-hush")
    assert account.commands == [
        f"kv namespace create {name}-pages",
        f"queues info {name}-dead",
        f"queues create {name}-dead",
        f"queues info {name}",
        f"queues create {name}",
        "deploy",
        "secret put PROCESSOR_SECRET",
    ]
    assert account.told[-1]["stdin"] == "hush-hush"
    assert not any("hush" in command for command in account.commands)
    assert "hush" not in err
    after = (account.root / "cloud" / "wrangler.jsonc").read_text()
    assert after == before.replace("0" * 32, MADE)

    account.notes.unlink()
    account.says = {}  # all of it is there
    out, _ = account.deploy()
    assert account.commands == [f"queues info {name}-dead", f"queues info {name}", "deploy"]
    assert f"--namespace-id={MADE}" in out
    where = ("--store=cloudflare", f"--namespace-id={MADE}", "--account-id=a", "--force")
    assert load_project(account.root).engine == "python"  # its pages are here still
    run(account.root, "nimbus.init", *where)
    assert load_project(account.root).engine == "cloudflare"


def test_a_dry_run_asks_nobody(account: Account) -> None:
    before = (account.root / "cloud" / "wrangler.jsonc").read_text()
    out, _ = account.deploy("--dry-run", PROCESSOR_SECRET="hush-hush")
    assert "kv namespace create" in out
    assert "secret put PROCESSOR_SECRET" in out
    assert "hush-hush" not in out
    assert account.told == []
    assert (account.root / "cloud" / "wrangler.jsonc").read_text() == before


@pytest.mark.parametrize(
    ("beginning", "said", "code", "words"),
    [
        ("kv", "✘ [ERROR] You are not authenticated. Please run `wrangler login`.", 2, "logged in"),
        ("kv", "✘ [ERROR] Authentication error [code: 10000]", 5, "Queues: Edit"),
        ("kv", "✘ [ERROR] of this title already exists [code: 10014]", 5, "kv namespace list"),
        ("deploy", "✘ [ERROR] Your Worker is too large [code: 10027]", 5, "too large"),
        ("queues info", "✘ [ERROR] The service is unavailable", 5, "unavailable"),
    ],
)
def test_a_refusal_is_one_line(
    account: Account, beginning: str, said: str, code: int, words: str
) -> None:
    others = {name: says for name, says in account.says.items() if name != beginning}
    says = {"WRANGLER_SAYS": json.dumps({beginning: (1, said), **others})}
    ran = invoke(account.root, "nimbus.cloud.deploy", timeout=60, **account.environment, **says)
    assert ran.returncode == code
    assert words in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_what_wrangler_says_of_a_secret_is_said_to_nobody(account: Account) -> None:
    token, secret = "tok+en/0123456789abcdef", "hush-hush-hush-hush"
    said = f"✘ [ERROR] Bearer {token[:20]}…, {quote(token, safe='')} or {secret} is refused"
    others = {name: says for name, says in account.says.items() if name != "secret"}
    says = {"WRANGLER_SAYS": json.dumps({"secret": (1, said), **others})}
    secrets = {"CLOUDFLARE_API_TOKEN": token, "PROCESSOR_SECRET": secret}
    environment = account.environment | says | secrets
    ran = invoke(account.root, "nimbus.cloud.deploy", timeout=60, **environment)
    assert ran.returncode == 5
    assert "Bearer ***…, *** or *** is refused" in ran.stderr


def test_what_cannot_work_on_cloudflare_is_refused_before(account: Account) -> None:
    config = account.root / "cloud" / "wrangler.jsonc"
    whole = config.read_text()
    for old, new, words in (
        (URL, "http://127.0.0.1:8080/", "cannot reach"),
        (load_project(account.root).project_id, "proj_other", "is of project"),
        ('"binding": "KV"', '"binding": "OTHER"', "kv_namespaces"),
        ("{", "", "cannot be read"),
    ):
        config.write_text(whole.replace(old, new, 1) if old == "{" else whole.replace(old, new))
        assert words in account.deploy(code=2)[1]
    assert account.told == []


def test_the_workers_namespace_has_to_be_the_projects(account: Account) -> None:
    where = ("--store=cloudflare", f"--namespace-id={MADE}", "--account-id=a", "--force")
    run(account.root, "nimbus.init", *where)
    config = account.root / "cloud" / "wrangler.jsonc"
    config.write_text(config.read_text().replace("0" * 32, "1" * 32))
    assert "has namespace" in account.deploy(code=2)[1]


# --- reading wrangler's configuration and words ---


def test_comments_and_last_commas_are_no_part_of_it() -> None:
    text = '{"a": "http://x//y", /* c */ "b": [1, 2, ], // "d": 1\n "e": ",]", }'
    assert parse_jsonc(text) == {"a": "http://x//y", "b": [1, 2], "e": ",]"}
    with pytest.raises(ValueError, match="no JSON object"):
        parse_jsonc("[]")


def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Worker"):
        load_worker(tmp_path)


def test_the_line_that_tells() -> None:
    log = "⛅️ wrangler 4\n\x1b[31m✘ [ERROR] Address already in use.\x1b[0m\n  at x\n"
    assert last_words(log) == "Address already in use."
    log = "✘ [ERROR] A request to the Cloudflare API (/x) failed.\n\n  No such thing [code: 1]\n"
    assert last_words(log) == (
        "A request to the Cloudflare API (/x) failed. No such thing [code: 1]"
    )
    assert last_words("") == "it said nothing"


def test_wrangler_takes_the_configuration(tmp_path: Path) -> None:
    """Bundles the Worker and checks its configuration, offline."""
    need_wrangler()
    run(tmp_path, "nimbus.cloud.init", f"--url={URL}")
    wrangler = MODULES / ".bin" / "wrangler"
    ran = subprocess.run(
        [wrangler, "deploy", "--dry-run", "--outdir=../out"],
        cwd=tmp_path / "cloud",
        env={
            **os.environ,
            **quiet_environment(tmp_path),
            "PATH": f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stdout + ran.stderr
    assert (tmp_path / "out" / "index.js").stat().st_size < 100_000
    shutil.rmtree(tmp_path / "out")
