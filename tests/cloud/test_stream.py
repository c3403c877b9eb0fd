"""A batch through ticks, Queue and consumers, where KV and Queue are as bad as they may be."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.factories import REPOSITORY
from tests.wrangler.installed import MODULES, need_wrangler

WORKER = REPOSITORY / "nimbus_tasks" / "cloud" / "worker"


def ended(pages: int, **given: Any) -> dict[str, Any]:
    """How a batch of so many pages ends; ``given`` are the faults of ``stream_under_test.js``."""
    need_wrangler()
    script = Path(__file__).with_name("stream_under_test.js")
    ran = subprocess.run(
        [MODULES / ".bin" / "node", script, WORKER, json.dumps({"pages": pages, **given})],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(ran.stdout)
    counts = outcome["counts"]
    failed = sum(count for code, count in outcome["pages"].items() if code != "done")
    assert (counts["done"], counts["failed"]) == (pages - failed, failed)
    assert outcome["batch"] == ("partially_completed" if failed else "completed")
    assert outcome["items"] == 0
    return outcome


def test_each_item_is_sent_once_and_in_order() -> None:
    outcome = ended(3000)
    assert outcome["sent"] == {"1": 3000}
    assert (outcome["unordered"], outcome["throttled"], outcome["minutes"]) == (0, 0, 6)


def test_what_the_queue_took_before_it_refused_is_not_sent_again() -> None:
    outcome = ended(500, seconds=100, refuses=3, vars={"CONCURRENCY": "200"})
    assert outcome["refused"] > 0
    assert outcome["sent"] == {"1": 500}


def test_a_page_that_waits_for_a_service_is_not_written_twice_a_second() -> None:
    outcome = ended(200, busy=0.3)
    assert outcome["throttled"] == 0
    assert outcome["pages"].get("worker_lost") is None


def test_where_every_read_is_a_minute_old_each_page_ends_with_its_first_attempt() -> None:
    """Also those of a tick, that does not see what the tick before has sent: they go out twice."""
    outcome = ended(200, lag=60_000)
    assert outcome["attempts"] == {"1": 200}
    assert outcome["pages"] == {"done": 200}
    assert outcome["minutes"] < 10


def test_messages_that_are_lost_or_come_twice_and_invocations_that_end_early() -> None:
    """What is lost is sent again after a lease: fifteen minutes, each time."""
    outcome = ended(200, drop=0.1, twice=0.2, dies=0.1, fails=0.1)
    assert set(outcome["pages"]) == {"done", "broken"}
    assert outcome["attempts"] == {"1": 200}


def test_a_page_gets_its_attempts_on_the_free_plan_as_well() -> None:
    variables = {"OPERATIONS": "50", "BATCH_SIZE": "4", "MAX_ATTEMPTS": "3"}
    outcome = ended(200, fails=0.3, vars=variables)
    assert outcome["attempts"].keys() == {"1", "2", "3"}
    assert set(outcome["pages"]) == {"done", "broken"}
    assert outcome["sent"].keys() == {"1"}


def test_where_each_read_is_of_another_age_and_all_else_goes_wrong_the_counts_are_right() -> None:
    """What a tick lists, reads and remembers does not fit together; a page is tried three times."""
    faults = {"drop": 0.05, "twice": 0.1, "dies": 0.1, "fails": 0.3, "busy": 0.1}
    three = {"MAX_ATTEMPTS": "3"}
    outcome = ended(200, lag=60_000, uneven=True, vars=three, **faults)
    assert set(outcome["pages"]) <= {"done", "broken"}
    assert outcome["pages"]["done"] > 180
