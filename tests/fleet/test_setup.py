"""A project that shares its work: how it is made, what the doctor says, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.project import load_project
from nimbus_tasks.doctor import Check, examine
from nimbus_tasks.init import init_project
from nimbus_tasks.upload.preflight import upload_cost
from nimbus_tasks.worker.options import Options
from tests.fleet.conftest import Fleet
from tests.kv.kv_server import NAMESPACE
from tests.kv.queue_server import QUEUE, QueueServer

WHERE = {"namespace_id": NAMESPACE, "account_id": "abc"}


def test_a_project_is_made_with_what_is_given(tmp_path: Path) -> None:
    cloudflare = {**WHERE, "queue_id": QUEUE}
    init_project(tmp_path, store="cloudflare", queue="cloudflare-queues", cloudflare=cloudflare)
    config = json.loads((tmp_path / ".nimbus" / "project-config.json").read_text())
    assert (config["queue"], config["cloudflare"]) == ("cloudflare-queues", cloudflare)
    assert load_project(tmp_path).is_shared


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queue": "cloudflare-queues"}, "goes with the store cloudflare"),
        ({"store": "cloudflare", "queue": "cloudflare-queues", "cloudflare": WHERE}, "queue_id"),
        (
            {
                "store": "cloudflare",
                "queue": "cloudflare-queues",
                "cloudflare": {**WHERE, "queue_id": "../x"},
            },
            "queue_id",
        ),
        ({"store": "cloudflare", "cloudflare": {**WHERE, "queue_id": QUEUE}}, "--queue-id is of"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        init_project(tmp_path, **options)
    assert not (tmp_path / ".nimbus").exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"store": "sqlite"}, 2, "goes with the store cloudflare"),
        ({"queue_id": None}, 2, "cloudflare.queue_id"),
        ({"queue_id": "a b"}, 2, "cloudflare.queue_id"),
        ({"queue_id": "f" * 32}, 5, "no such account or queue"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    fleet: Fleet, change: dict[str, Any], code: int, said: str
) -> None:
    path = fleet.machine().folder / "project-config.json"
    config = json.loads(path.read_text())
    fleet.upload(1)
    for name, value in change.items():
        (config if name in config else config["cloudflare"])[name] = value
    path.write_text(json.dumps(config))
    for told in fleet.run_each("nimbus.worker", "nimbus.upload", code=code):
        assert said in told.stderr
        assert len(told.stderr.strip().splitlines()) <= 2, told.stderr
    # Nothing was queued that no queue would hand out.
    assert [path for path, status in fleet.statuses().items() if status["status"] == "queued"] == [
        "dist/page-000.html"
    ]


def test_a_wrong_token_is_one_line_and_is_not_shown(fleet: Fleet) -> None:
    fleet.upload(1)
    told = fleet.run("nimbus.worker", code=5, token="another-token-that-nobody-may-see")
    assert "does not accept the API token" in told.stderr
    assert "that-nobody-may-see" not in told.stderr + told.stdout


def found(fleet: Fleet) -> dict[str, Check]:
    return {check.name: check for check in examine(fleet.machine().root)}


def test_the_doctor_looks_at_the_queue(fleet: Fleet, server: QueueServer) -> None:
    fleet.upload(3)
    checks = found(fleet)
    assert checks["queue"].level == checks["store"].level == "ok"
    assert "nimbus answers, about 3 messages" in checks["queue"].detail
    assert "1 batch, 3 pages queued" in checks["store"].detail
    assert fleet.server.operations == {"write": 3}  # it takes none
    server.max_retries = 3
    assert found(fleet)["queue"].level == "warning"


def test_the_doctor_says_what_to_do(fleet: Fleet, server: QueueServer) -> None:
    server.can_be_pulled = False
    check = found(fleet)["queue"]
    assert (check.level, check.exit_code) == ("error", 5)
    assert "wrangler queues consumer http add nimbus" in str(check.advice)
    server.queue = "another"
    assert "no such account or queue" in found(fleet)["queue"].detail


def test_a_queue_that_gives_no_messages_over_http_ends_a_worker(fleet: Fleet) -> None:
    fleet.upload(1)
    fleet.server.can_be_pulled = False
    told = fleet.run("nimbus.worker", code=5)
    assert "wrangler queues consumer http add" in told.stderr


def test_messages_are_no_writes_to_kv() -> None:
    assert upload_cost(10_000, 80_000_000, queue="cloudflare-queues").writes == 20_002


def test_a_message_is_held_for_as_long_as_its_page_may_take() -> None:
    assert Options(timeout=100, lease_seconds=60).hold_seconds == 260
    assert Options().hold_seconds == 660
    assert Options(timeout=86_400).hold_seconds == 12 * 3600  # a Queue's longest
    shared = Options(lease_seconds=60).shared(lag_seconds=60)
    assert (shared.lease_seconds, shared.first_ahead) == (120, 0)
