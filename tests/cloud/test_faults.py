"""Where KV shows too little, or refuses; where something is too much; ticks and messages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.factories import REPOSITORY
from tests.wrangler.installed import MODULES, need_wrangler

WORKER = REPOSITORY / "nimbus_tasks" / "cloud" / "worker"
#: What each case of ``faults_under_test.js`` ends with.
EXPECTED: dict[str, Any] = {
    "taken_away": ["ack", True, "c2"],
    "tried_again": "queued",
    "not_tried_again_when_cancelled": "failed",
    "content_not_seen_yet": [30, "ack", "missing_page", "ack"],
    "lapsed": ["cancelled", 0],
    "tick_at_work": [{"busy": True}, 0],
    "early_item": True,
    "item_not_seen_yet": {"60": 0, "0": 1},
    "cancelled_meanwhile": ["later", "cancel", []],
    "cancelled_and_read_too_early": ["later", "cancel"],
    "cancelled_while_it_is_put_together": ["later", "cancel"],
    "tick_cut_off": [True, False],
    "cancelled_between_deliveries": "done",
    "messages_that_are_over": ["ack", True, False, "ack", True, True],
    "claim_cut_off": [30, "processing", "done", 1, False],
    "taken_over": ["partially_completed", "failed", 1, 1],
    "few_operations": {"50": 1, "1000": 2},
    "refused_for_good": [1, True],
    "lapsed_and_refused": [2, "processing", "queued"],
    "status_of_no_room": [None, 3, None],
    "keys_that_are_longer": [0, 1, "processing", "uploaded"],
    "throttled": 2,
    "long_log": [
        *(8, True, {"theirs": "x", "entries": [{"n": 9}]}),
        {"page_id": "page_1", "entries": [{"n": 9}]},
    ],
    "many_steps": [201, "0 changes; 800 more steps are not logged"],
    "too_large": ["too_large", "bad_result"],
    "refused_by_the_model": ["refused", {"tokens_in": 7, "tokens_out": 1}],
    "refusals_with_a_reason": [
        ["http_400", "PROCESSOR_URL answered 400: no page for Bearer … [31m xxxxxx", 228],
        *[["http_400", "PROCESSOR_URL answered 400", 26]] * 2,
    ],
    "endless_answer": ["bad_result", True] * 2,
    "usage_of_two_attempts": [
        {"tokens_in": 5, "tokens_out": 2, "cost": 0.1},
        "done",
        {"tokens_in": 6, "tokens_out": 3, "cost": 0.3},
    ],
    "usage_that_is_none": "bad_result",
    "usage_of_a_bad_result": {"tokens_in": 1, "tokens_out": 2},
}
#: What each case of ``ticks_under_test.js`` ends with.
TICKS: dict[str, Any] = {
    "sends_what_is_done_in_three_minutes": [6, 2, 15, 6],
    "sends_in_order_and_once": [[6, 0], "123456", 6],
    "sent_before": [*["0,0"] * 4, "1,0", *["0,0"] * 2, *["0,1"] * 3],
    "sent_before_and_not_wanted_now": [0, 0],
    "retried_and_listed_as_before": [
        *["retrying", "completed"] * 2,
        *["failed", "failed", "retrying", "completed"],
    ],
    "memories_that_are_none": [1] * 11,
    "quiet": [0, {"idle": True}, True, 0, 1],
    "not_quiet": [0, True, 0, True, 0, True],
    "at_rest": [[True, False, False], [1, True, True]],
    "called_over": ["processing", True, False],
    "sent_before_a_tick_that_is_cut_off": [True] * 3,
    "takes_no_more_operations_than_there_are": [[True, True]] * 2,
    "sends_what_a_queue_takes": [5000, 5000],
    "records_that_kv_refuses": [1, 2, [None, "worker_lost"]],
    "lapses": ["1,queued,true,,1", "2,queued,true,,2", "3,failed,false,worker_lost,3"],
    "lapsed_by_an_old_listing": [0, 0],
    "leaves_a_record_alone": ["later", "later", *["as it is"] * 3, 0],
    "summed_up_when_reads_have_come_up": [*["later"] * 2, *["written"] * 4],
    "summed_up": ["partially_completed 100", "failed undefined", "cancelled 100"],
}
#: What each case of ``messages_under_test.js`` ends with.
MESSAGES: dict[str, Any] = {
    "waits_no_longer_than_its_lease": [
        *([450, "processing", 3], ["ack", "processing", 0], ["ack", "failed", 3]),
    ],
    "messages_that_come_again": [3, 1],
    "messages_of_one_batch": ["batch:p:b"],
    "page_that_is_not_there": [30, True, "ack", True, "ack", False],
    "messages_of_nobody": ["ack,3,queued"],
    "cancelled_before_it_is_claimed": ["ack", "cancelled", False],
    "pause_before_an_outcome": [[True], [True, True], [True, True]],
    "keeps_its_lease": [1000, True],
    "statuses_that_something_happens_to": ["ack,done", "ack,none", "ack,done"],
    "page_of_no_batch": ["ack", "queued", False],
    "page_of_no_place": [1, False, "done", 1, True, "done"],
    "tried_again_behind_the_others": "21",
    "content_of_an_upload_before": [30, False, *["ack", True] * 3],
    "page_with_metadata": ['{"optimization":5}', 1],
    "seconds_that_a_page_has": [[120, 168, 500, 84, *[120] * 4], 30],
}
SCRIPTS = {"faults": EXPECTED, "ticks": TICKS, "messages": MESSAGES}


@pytest.fixture(scope="module")
def said() -> dict[str, dict[str, Any]]:
    need_wrangler()
    return {name: _said_by(f"{name}_under_test.js") for name in SCRIPTS}


def _said_by(script: str) -> dict[str, Any]:
    ran = subprocess.run(
        [MODULES / ".bin" / "node", Path(__file__).with_name(script), WORKER],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize(
    ("script", "case"), [(script, case) for script, cases in SCRIPTS.items() for case in cases]
)
def test_faults(said: dict[str, dict[str, Any]], script: str, case: str) -> None:
    assert said[script][case] == SCRIPTS[script][case]


def test_every_case_is_expected_to_end_somehow(said: dict[str, dict[str, Any]]) -> None:
    assert {name: cases.keys() for name, cases in said.items()} == {
        name: cases.keys() for name, cases in SCRIPTS.items()
    }
