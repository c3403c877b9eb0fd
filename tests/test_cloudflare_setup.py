"""A project on Cloudflare: its configuration, the doctor's look at it, what a dry run foresees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.project import load_project, save_project
from nimbus_tasks.doctor import Check, examine
from nimbus_tasks.init import init_project
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.upload.preflight import upload_cost
from tests.factories import invoke, write_maps
from tests.kv.kv_server import Answer, KVServer

TOKEN = "secret-token-that-nobody-may-see"
NAMESPACE = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", TOKEN)


@pytest.fixture
def server() -> Iterator[KVServer]:
    with KVServer(token=TOKEN) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, server: KVServer) -> Path:
    """A project on that server."""
    cloudflare = {"namespace_id": server.namespace, "api_base": server.prefix}
    init_project(tmp_path, store="cloudflare", cloudflare=cloudflare)
    return tmp_path


def found(root: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(root)}


# --- configuration ---


def test_a_project_is_made_with_what_is_given(tmp_path: Path) -> None:
    cloudflare = {"namespace_id": NAMESPACE, "account_id": "abc", "api_base": None}
    init_project(tmp_path, store="cloudflare", queue="document", cloudflare=cloudflare)
    config = json.loads((tmp_path / ".nimbus" / "project-config.json").read_text())
    assert (config["store"], config["queue"]) == ("cloudflare", "document")
    assert config["cloudflare"] == {"namespace_id": NAMESPACE, "account_id": "abc"}
    assert TOKEN not in json.dumps(config)


def test_written_anew_it_keeps_what_is_not_given(tmp_path: Path) -> None:
    first = init_project(
        tmp_path, store="cloudflare", cloudflare={"namespace_id": NAMESPACE, "account_id": "abc"}
    ).project
    path = tmp_path / ".nimbus" / "project-config.json"
    config = json.loads(path.read_text())
    config["cloudflare"]["note"] = "theirs"
    path.write_text(json.dumps(config))
    again = init_project(tmp_path, queue="document", force=True).project
    assert again.project_id == first.project_id
    assert (again.store, again.queue) == ("cloudflare", "document")
    assert again.cloudflare == {"namespace_id": NAMESPACE, "account_id": "abc", "note": "theirs"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"store": "cloudflare"}, "namespace_id"),
        ({"store": "cloudflare", "cloudflare": {"namespace_id": "../x"}}, "namespace_id"),
        ({"store": "cloudflare", "cloudflare": {"namespace_id": NAMESPACE}}, "account"),
        ({"cloudflare": {"namespace_id": NAMESPACE}}, "--namespace-id is of no use"),
        (
            {
                "store": "cloudflare",
                "cloudflare": {"namespace_id": NAMESPACE, "api_base": "http://a.example/api"},
            },
            "https",
        ),
        ({"store": "redis"}, "redis"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        init_project(tmp_path, **options)
    assert not (tmp_path / ".nimbus").exists()


def test_the_account_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "fedcba98")
    init_project(tmp_path, store="cloudflare", cloudflare={"namespace_id": NAMESPACE})
    with load_project(tmp_path).open_store() as store:
        assert isinstance(store, CloudflareStore)
        assert "fedcba98" in store._client._transport.prefix


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (5, "is no object"),
        ({}, "namespace_id"),
        ({"namespace_id": NAMESPACE, "api_base": 5}, "api_base"),
        ({"namespace_id": NAMESPACE, "api_base": "https://"}, "api_base"),
        ({"namespace_id": NAMESPACE, "account_id": ["x"]}, "account"),
    ],
)
def test_a_configuration_that_names_no_store_is_refused_in_a_line(
    tmp_path: Path, part: object, said: str
) -> None:
    config = {"project_id": "proj_0123456789ab", "store": "cloudflare", "cloudflare": part}
    (tmp_path / ".nimbus").mkdir()
    (tmp_path / ".nimbus" / "project-config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=said):
        load_project(tmp_path).open_store().__enter__()


def test_a_token_is_needed_where_it_would_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudflare = {"namespace_id": NAMESPACE, "account_id": "abc"}
    project = init_project(tmp_path, store="cloudflare", cloudflare=cloudflare).project
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    with pytest.raises(UsageError, match="no API token"):
        project.open_store().__enter__()


# --- the doctor ---


def test_the_doctor_tries_everything_and_leaves_nothing_behind(
    root: Path, server: KVServer
) -> None:
    checks = found(root)
    assert {check.level for check in checks.values()} == {"ok"}
    assert checks["access"].detail == "one key written, read, listed and deleted"
    assert "requests in" in checks["requests"].detail
    assert server.data == {}


def test_the_doctor_says_what_is_left_of_the_budget(root: Path, server: KVServer) -> None:
    server.headers = lambda call: {"Ratelimit": '"default";r=1150;t=30'}
    assert "1,150 requests are left" in found(root)["requests"].detail


def test_the_doctor_names_a_wrong_token_and_a_wrong_namespace(
    root: Path, server: KVServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "another")
    check = found(root)["cloudflare"]
    assert (check.level, check.exit_code) == ("error", 5)
    assert "token" in check.detail
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", TOKEN)
    init_project(root, cloudflare={"namespace_id": "another"}, force=True)
    check = found(root)["cloudflare"]
    assert "namespace" in check.detail
    assert "namespace_id" in str(check.advice)


def test_the_doctor_cleans_up_after_a_read_that_fails(root: Path, server: KVServer) -> None:
    refusal = {"success": False, "errors": [{"code": 10000, "message": "no"}], "result": None}

    def plan(call: Any) -> Answer | None:
        return Answer(403, json.dumps(refusal).encode()) if call.path.endswith("/get") else None

    server.faults = plan
    assert found(root)["cloudflare"].level == "error"
    assert server.data == {}


def test_the_doctor_tells_lag_from_failure(root: Path, server: KVServer) -> None:
    server.stale_reads = 30.0
    check = found(root)["access"]
    assert check.level == "warning"
    assert "did not have it yet" in check.detail


def test_the_doctor_sees_a_worker_that_the_configuration_does_not_name(
    root: Path, server: KVServer
) -> None:
    assert "worker" not in found(root)
    project = load_project(root)
    with project.open_store() as store:
        store.put(f"cloud:{project.project_id}:tick", "{}")  # what a tick of its leaves
    check = found(root)["worker"]
    assert check.level == "warning"
    assert "worker_namespace_id" in str(check.advice)
    cloudflare = {**project.cloudflare, "worker_namespace_id": server.namespace}
    save_project(replace(project, cloudflare=cloudflare))
    assert "worker" not in found(root)


def test_the_doctors_document_has_no_secret(root: Path) -> None:
    ran = invoke(root, "nimbus.doctor", "--json", CLOUDFLARE_API_TOKEN=TOKEN)
    assert json.loads(ran.stdout)["ok"]
    assert TOKEN not in ran.stdout + ran.stderr


# --- what a dry run foresees ---


def test_a_dry_run_says_what_it_would_cost(root: Path, server: KVServer) -> None:
    write_maps(root / ".nimbus" / "maps", 3)
    ran = invoke(root, "nimbus.upload", "--dry-run", CLOUDFLARE_API_TOKEN=TOKEN)
    assert ran.returncode == 0
    assert "11 to send" in ran.stdout
    assert "free plan" in ran.stdout
    assert server.data == {}
    ran = invoke(root, "nimbus.upload", "--dry-run", "--json", CLOUDFLARE_API_TOKEN=TOKEN)
    assert json.loads(ran.stdout)["cloudflare"]["writes"] == 11
    assert not [path for method, path in server.requests if method != "GET"]


@pytest.mark.parametrize(
    ("pages", "queue", "writes"),
    [(0, "keys", 0), (1, "keys", 5), (10_000, "keys", 30_002), (10_000, "document", 20_012)],
)
def test_writes_are_counted_as_they_are_billed(pages: int, queue: str, writes: int) -> None:
    cost = upload_cost(pages, pages * 8000, queue=queue)
    assert cost.writes == writes
    assert cost.free_days == (writes + cost.work_writes) / 1000
    assert cost.paid_usd == pytest.approx((writes + cost.work_writes) * 5 / 1e6)
