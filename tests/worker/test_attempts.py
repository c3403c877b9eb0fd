"""Attempts: whatever a processor does, its page has an outcome that a store can hold."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nimbus_tasks.core.claims import Claim, Outcome
from nimbus_tasks.core.errors import ProcessorError, UsageError
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.core.wire import dump_json
from nimbus_tasks.kv.store import Entry
from nimbus_tasks.worker.attempts import MAX_STEPS_LOGGED, Attempt, AttemptPool

PAGE = {"page_id": "page_a", "source_path": "a.html", "extraction": {"head": {}}}


def a_claim(page: object = PAGE, attempts: int = 1, page_id: str = "page_a") -> Claim:
    status = PageStatus("processing", "batch_1", "", attempts=attempts, claim="token")
    return Claim(page_id, status, Entry("page:p:page_a", json.dumps(page), {"sha256": "x"}))


def run(answer: object = None, *, error: BaseException | None = None, tries: int = 1) -> Outcome:
    def process(page: Any, progress: Callable[..., None]) -> Any:
        if error is not None:
            raise error
        return answer

    return Attempt(a_claim()).run(process, tries)


def stored(outcome: Outcome) -> Any:
    assert outcome.page_value is not None
    return json.loads(outcome.page_value)


def test_a_result_becomes_an_outcome_with_the_optimization_in_the_page() -> None:
    outcome = run({"changes": 3, "confidence": 0.87654321, "optimization": {"title": "é"}})
    assert (outcome.error, outcome.changes, outcome.confidence) == (None, 3, 0.8765)
    assert stored(outcome) == {**PAGE, "optimization": {"title": "é"}}


def test_every_part_of_a_result_may_be_missing() -> None:
    outcome = run({})
    assert (outcome.error, outcome.changes, outcome.confidence) == (None, 0, None)
    assert outcome.page_value is None  # the page stays as it is


def test_an_earlier_optimization_is_replaced() -> None:
    claim = a_claim(PAGE)
    assert claim.page is not None
    spaced = claim._replace(page=claim.page._replace(value=claim.page.value + "\n"))
    outcome = Attempt(spaced).run(lambda page, progress: {"optimization": [1]}, 1)
    assert stored(outcome) == {**PAGE, "optimization": [1]}
    claim = a_claim({**PAGE, "optimization": {"old": 1}, "note": "kept"})
    outcome = Attempt(claim).run(lambda page, progress: {"optimization": [2]}, 1)
    assert stored(outcome) == {**PAGE, "optimization": [2], "note": "kept"}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [1],
        "done",
        {"changes": -1},
        {"changes": 1.5},
        {"changes": True},
        {"changes": "3"},
        {"changes": 2**60},
        {"confidence": 1.01},
        {"confidence": -0.1},
        {"confidence": float("nan")},
        {"confidence": True},
        {"confidence": "high"},
        {"usage": "much"},
        {"usage": {}},
        {"usage": {"tokens_in": 1, "tokens_out": -1}},
        {"usage": {"tokens_in": 1, "tokens_out": 1, "cost": -0.5}},
        {"usage": {"tokens_in": 1, "tokens_out": 1, "cost": float("nan")}},
        {"optimization": {1, 2}},
        {"optimization": float("inf")},
        {"optimization": "\ud800"},
    ],
    ids=repr,
)
def test_a_result_that_is_none_fails_the_page(answer: object) -> None:
    outcome = run(answer)
    assert outcome.code == "bad_result"
    assert outcome.error


def test_an_optimization_without_end_fails_the_page() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert run({"optimization": endless}).code == "bad_result"


def test_a_page_that_becomes_too_large_fails() -> None:
    assert run({"optimization": "x" * 27_000_000}).code == "too_large"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ProcessorError("slow down", code="rate_limited"), "rate_limited", "slow down"),
        (ValueError("bad\nhtml"), "ValueError", "bad\nhtml"),
        (KeyError(), "KeyError", "KeyError"),
        (SystemExit(3), "SystemExit", "3"),
        (RuntimeError("half \ud800"), "RuntimeError", "half ?"),
        (RuntimeError("x" * 10_000), "RuntimeError", "x" * 2000),
    ],
    ids=["code", "class", "no text", "exit", "surrogate", "long"],
)
def test_raising_fails_the_page_with_a_code(error: BaseException, code: str, message: str) -> None:
    outcome = run(error=error)
    assert (outcome.code, outcome.error) == (code, message)
    last = outcome.entries[-1]
    assert (last["level"], last["data"]["code"], last["data"]["attempt"]) == ("error", code, 1)
    dump_json(list(outcome.entries)).encode()


def test_a_failure_is_tried_again_while_attempts_are_left() -> None:
    assert run(error=ValueError("x"), tries=2).try_again
    assert not run(error=ValueError("x"), tries=1).try_again


@pytest.mark.parametrize("page", [None, "{damaged", "[]"])
def test_a_page_without_usable_content_fails(page: str | None) -> None:
    claim = a_claim()
    entry = None if page is None else Entry("page:p:page_a", page)
    broken = Claim(claim.page_id, claim.status, entry)
    outcome = Attempt(broken).run(lambda page, progress: {}, 1)
    assert outcome.code == ("missing_page" if page is None else "unreadable_page")


def test_each_step_is_one_log_entry_with_its_duration() -> None:
    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        progress("fetch", 10)
        progress("ask", 50, "Asked the model", tokens=12)
        return {"changes": 1}

    entries = Attempt(a_claim()).run(process, 1).entries
    assert [entry["step"] for entry in entries] == ["fetch", "ask", "done"]
    assert entries[1]["message"] == "Asked the model"
    assert entries[1]["data"] == {"tokens": 12}
    assert all(entry["duration_ms"] >= 0 for entry in entries[:2])
    assert entries[2]["data"] == {"attempt": 1, "batch_id": "batch_1"}


@pytest.mark.parametrize(("percent", "shown"), [(-5, 0), (250, 100), (float("nan"), 0), ("x", 0)])
def test_a_percentage_is_kept_within_0_and_100(percent: Any, shown: float) -> None:
    attempt = Attempt(a_claim())
    attempt.report("step", percent)
    assert attempt.percent == shown


def test_secrets_are_in_no_data_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "secret-token-that-nobody-may-see")

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        progress("ask", 1, headers=[{"Authorization": "Bearer secret-token-that-nobody-may-see"}])
        return {}

    entries = Attempt(a_claim()).run(process, 1).entries
    assert "Bearer ***" in str(entries[0]["data"])
    assert "secret-token" not in dump_json(list(entries))


def test_a_flood_of_steps_and_data_is_bounded_and_said() -> None:
    many = {f"field {number}": number for number in range(100)}

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        for number in range(MAX_STEPS_LOGGED + 50):
            progress(f"step {number}", 1, "m" * 9000, blob="b" * 90_000, odd={1, 2}, **many)
        return {}

    entries = Attempt(a_claim()).run(process, 1).entries
    assert len(entries) == MAX_STEPS_LOGGED + 1
    assert "50 more steps are not logged" in entries[-1]["message"]
    assert len(entries[0]["data"]) == 20
    assert len(dump_json(list(entries))) < 1_500_000


def outcomes_of(pool: AttemptPool, count: int) -> list[Outcome]:
    deadline = time.monotonic() + 20
    found: list[Outcome] = []
    while len(found) < count:
        assert time.monotonic() < deadline, "the pool gave too few outcomes"
        found += pool.outcomes(0.05)
    return found


def test_an_overdue_page_fails_and_the_pool_goes_on_without_it() -> None:
    go = threading.Event()

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        if page["page_id"] == "hangs":
            go.wait()
        return {"changes": 1}

    pool = AttemptPool(process, concurrency=1, max_attempts=1, timeout=0.2)
    pool.submit([a_claim({**PAGE, "page_id": p}, page_id=p) for p in ("hangs", "fine")])
    late, fine = outcomes_of(pool, 2)
    assert (late.code, fine.code, fine.changes) == ("timeout", None, 1)
    assert pool.unfinished == 0
    go.set()  # what it answers now is thrown away
    assert pool.outcomes(0.1) == []
    pool.close()


@pytest.mark.skipif(sys.platform == "win32", reason="an alarm of POSIX")
def test_a_wait_that_is_held_up_until_it_is_over_is_over() -> None:
    """By a signal here; by a busy machine as well."""
    rung: list[float] = []

    def hold_up(*_: object) -> None:
        rung.append(time.monotonic())
        assert len(rung) == 1, "it still waits"
        time.sleep(0.2)

    before = signal.signal(signal.SIGALRM, hold_up)
    try:
        pool = AttemptPool(lambda page, progress: {}, 1, 1, None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 5)
        assert pool.outcomes(0.1) == []
        pool.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_claims_that_wait_for_a_thread_can_be_taken_back() -> None:
    go, begun = threading.Event(), threading.Event()

    def process(page: Any, progress: Callable[..., None]) -> dict[str, Any]:
        begun.set()
        go.wait(20)
        return {}

    pool = AttemptPool(process, concurrency=1, max_attempts=1, timeout=None)
    pool.submit([a_claim(page_id=f"page_{n}") for n in range(3)])
    assert begun.wait(20)
    assert [claim.page_id for claim in pool.take_back_waiting()] == ["page_1", "page_2"]
    assert (pool.unfinished, pool.waiting, len(pool.running)) == (1, 0, 1)
    go.set()
    assert len(outcomes_of(pool, 1)) == 1
    pool.close()


def test_threads_do_not_keep_python_from_ending() -> None:
    import subprocess

    from tests.factories import environment_for

    code = (
        "from nimbus_tasks.worker.attempts import AttemptPool\n"
        "AttemptPool(lambda page, progress: {}, 4, 1, None)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment_for(), timeout=20, check=True)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), UnprintableError()])
def test_whatever_is_raised_the_page_has_an_outcome(error: BaseException) -> None:
    outcome = run(error=error)
    assert outcome.error
    assert outcome.code == type(error).__name__


def test_threads_that_cannot_be_started_are_the_fault_of_an_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(UsageError, match="cannot start 8 threads"):
        AttemptPool(lambda page, progress: {}, 8, 1, None)


@pytest.mark.parametrize("name", ["changes", "confidence"])
def test_a_number_of_thousands_of_digits_is_no_result(name: str) -> None:
    assert run({name: 10**5000}).code == "bad_result"


def test_usage_comes_with_the_outcome_of_a_failure_too() -> None:
    spent = {"tokens_in": 5, "tokens_out": 2, "cost": None}
    assert run({"usage": spent}).usage == (5, 2, None)
    assert run(error=ProcessorError("no", code="bad_answer", usage=spent)).usage == (5, 2, None)
    wrong = run(error=ProcessorError("no", code="bad_answer", usage={"tokens_in": "many"}))
    assert (wrong.code, wrong.usage) == ("bad_answer", None)
