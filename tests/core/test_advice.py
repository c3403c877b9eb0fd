"""The commands to type next, for every state that a batch can be in."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.status import view_batch
from nimbus_tasks.core.advice import next_steps, next_steps_of
from nimbus_tasks.core.failures import FailureGroup
from nimbus_tasks.core.lifecycle import BatchStatus
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.core.project import Project, new_project
from nimbus_tasks.kv.store import Store
from tests.factories import failing, invoke, upload, work

ID = "batch_20261124_085002"
PAGE = PageInfo("page_1", {"status": "failed", "batch_id": ID})


def group(code: str, *, transient: bool = False, count: int = 2, **more: Any) -> FailureGroup:
    return FailureGroup(code, "no", count, (PAGE,), transient, **more)


def commands(status: str, counts: dict[str, int], **more: Any) -> list[str]:
    steps = next_steps(ID, status, counts, **more)
    assert all(step.why for step in steps)
    return [step.command for step in steps]


FAILED = {"done": 3, "failed": 4}


def test_a_batch_that_nobody_works_on_wants_a_worker() -> None:
    assert commands("queued", {"queued": 10}) == [f"invoke nimbus.worker --batch={ID}"]
    assert commands("retrying", {"done": 5, "queued": 5}) == [f"invoke nimbus.worker --batch={ID}"]


def test_where_messages_hand_out_the_pages_no_batch_is_chosen() -> None:
    """nimbus.worker --batch is refused there."""
    for status, counts, stalled in (
        ("queued", {"queued": 10}, 0),
        ("processing", {"processing": 4}, 4),
        ("failed", FAILED, 0),
    ):
        told = commands(status, counts, stalled=stalled, engine="fleet")
        assert "invoke nimbus.worker" in told


def test_a_worker_is_to_be_started_as_the_last_one_was() -> None:
    options = ["--processor=ai:rewrite", "--concurrency=8"]
    work = f"invoke nimbus.worker --batch={ID} --processor=ai:rewrite --concurrency=8"
    assert commands("failed", FAILED, worker_options=options)[-1] == work
    assert commands("queued", {"queued": 1}, worker_options=options) == [work]
    elsewhere = commands("failed", FAILED, worker_options=options, engine="cloudflare")
    assert elsewhere[-1] == f"invoke nimbus.batch.monitor --batch={ID}"


def test_a_batch_at_work_wants_to_be_watched() -> None:
    counts = {"queued": 3, "processing": 4}
    assert commands("processing", counts) == [f"invoke nimbus.batch.monitor --batch={ID}"]


@pytest.mark.parametrize("engine", ["cloudflare", "dev"])
def test_where_the_worker_is_on_cloudflare_nobody_is_to_start_one(engine: str) -> None:
    """A person there runs no worker: what is queued is taken up, and can be watched."""
    looks: list[tuple[str, dict[str, int], dict[str, Any]]] = [
        ("queued", {"queued": 10}, {}),
        ("processing", {"processing": 4, "queued": 9}, {"stalled": 4}),
        ("failed", FAILED, {"groups": [group("rate_limited", transient=True)]}),
        ("failed", FAILED, {"groups": [group("broken")]}),
    ]
    for status, counts, more in looks:
        steps = next_steps(ID, status, counts, engine=engine, **more)
        assert not any("nimbus.worker" in f"{step.why} {step.command}" for step in steps)
        [taking] = [step for step in steps if "goes on" in step.why]
        assert taking.command == f"invoke nimbus.batch.monitor --batch={ID}"
        assert ("nimbus.cloud.dev" in taking.why) == (engine == "dev")


@pytest.mark.parametrize(
    ("store", "cloudflare", "engine"),
    [
        ("sqlite", {"worker_namespace_id": "a"}, "python"),
        ("cloudflare", {"namespace_id": "a"}, "python"),
        ("cloudflare", {"namespace_id": "a", "worker_namespace_id": "b"}, "python"),
        ("cloudflare", {"namespace_id": "a", "worker_namespace_id": "a"}, "cloudflare"),
    ],
)
def test_whose_the_queued_pages_are(
    tmp_path: Path, store: str, cloudflare: dict[str, str], engine: str
) -> None:
    project = replace(new_project(tmp_path), store=store, cloudflare=cloudflare)
    assert project.engine == engine


def test_pages_whose_worker_is_gone_want_another() -> None:
    counts = {"processing": 4, "queued": 9}
    assert commands("processing", counts, stalled=4) == [
        f"invoke nimbus.worker --batch={ID}",
        f"invoke nimbus.batch.verify --batch={ID} --repair",
    ]
    assert commands("cancelling", {"processing": 4}, stalled=4)[0].startswith(
        "invoke nimbus.worker"
    )
    assert commands("processing", counts, stalled=1) == [
        f"invoke nimbus.batch.monitor --batch={ID}",
        f"invoke nimbus.worker --batch={ID}",
    ]


def test_an_upload_that_was_cut_off_wants_to_be_gone_on_with() -> None:
    counts = {"queued": 4, "uploaded": 6}
    assert commands("uploading", counts) == [f"invoke nimbus.upload --batch={ID}"]


def test_pages_that_are_stuck_want_a_look_at_the_records() -> None:
    assert commands("processing", {"done": 1, "uploaded": 2}) == [
        f"invoke nimbus.batch.verify --batch={ID} --repair"
    ]


def test_a_cancelled_batch_can_be_sent_again_or_taken_up() -> None:
    assert commands("cancelled", {"cancelled": 4, "done": 1}) == [
        "invoke nimbus.upload",
        f"invoke nimbus.batch.retry --batch={ID} --include-cancelled",
    ]


def test_a_completed_batch_wants_to_be_looked_at_but_in_the_report_that_does() -> None:
    assert commands("completed", {"done": 4}) == [f"invoke nimbus.batch.report --batch={ID} --open"]
    assert commands("completed", {"done": 4}, in_report=True) == []


def test_errors_that_come_and_go_want_a_retry() -> None:
    groups = [group("timeout", transient=True), group("rate_limited", transient=True)]
    assert commands("partially_completed", FAILED, groups=groups) == [
        f"invoke nimbus.batch.retry --batch={ID}",
        f"invoke nimbus.worker --batch={ID}",
    ]


def test_one_kind_of_error_is_named() -> None:
    groups = [group("timeout", transient=True)]
    assert commands("failed", {"failed": 2}, groups=groups) == [
        f"invoke nimbus.batch.retry --batch={ID} --error=timeout",
        f"invoke nimbus.worker --batch={ID}",
    ]


def test_of_mixed_errors_those_that_come_and_go_are_retried() -> None:
    groups = [group("ValueError"), group("timeout", transient=True)]
    assert commands("partially_completed", FAILED, groups=groups)[0] == (
        f"invoke nimbus.batch.retry --batch={ID} --error=timeout"
    )


def test_a_code_that_lasting_errors_share_does_not_choose() -> None:
    groups = [group("RuntimeError"), group("RuntimeError", transient=True, count=1)]
    assert commands("partially_completed", FAILED, groups=groups) == [
        f"invoke nimbus.batch.retry --batch={ID}",
        f"invoke nimbus.worker --batch={ID}",
    ]


def test_lasting_errors_want_a_look_first() -> None:
    groups = [group("ValueError"), group("KeyError")]
    look, again, then = commands("failed", {"failed": 4}, groups=groups)
    assert look == f"invoke nimbus.batch.report --batch={ID} --open"
    assert again == f"invoke nimbus.batch.retry --batch={ID}"
    assert then == f"invoke nimbus.worker --batch={ID}"
    assert commands("failed", {"failed": 4}, groups=groups, in_report=True) == [again, then]


def test_failures_of_which_no_kind_is_known_can_be_queued_again() -> None:
    assert commands("failed", {"failed": 2}, in_report=True)[0] == (
        f"invoke nimbus.batch.retry --batch={ID}"
    )


def test_failures_that_a_later_batch_has_taken_over_are_looked_for_there() -> None:
    groups = [group("ValueError", count=2, superseded=2)]
    assert commands("failed", {"failed": 2}, groups=groups) == [
        "invoke nimbus.batch.status --batch=latest"
    ]


@pytest.mark.parametrize("code", ["it's; rm -rf ~", "$(date)", "`id`", "a b", "'", '"', "--page=x"])
def test_a_hostile_code_is_one_word_to_a_shell(code: str) -> None:
    retry = commands("failed", {"failed": 2}, groups=[group(code, transient=True)])[0]
    assert shlex.split(retry)[2:] == [f"--batch={ID}", f"--error={code}"]


@pytest.mark.parametrize("code", ["two\nlines", "\x1b[31m", "\u202eabc", "\ud800", " ", "x" * 81])
def test_a_code_that_cannot_be_typed_is_left_out(code: str) -> None:
    retry = commands("failed", {"failed": 2}, groups=[group(code, transient=True)])[0]
    assert retry == f"invoke nimbus.batch.retry --batch={ID}"


def test_the_rest_of_the_errors_is_no_code() -> None:
    groups = [group("other", is_rest=True)]
    retry = commands("failed", {"failed": 2}, groups=groups, in_report=True)[0]
    assert retry == f"invoke nimbus.batch.retry --batch={ID}"


@pytest.mark.parametrize("status", [one.value for one in BatchStatus])
def test_there_is_advice_for_every_status(status: str) -> None:
    assert commands(status, {"queued": 1, "failed": 1}, groups=[group("x")])


def test_the_steps_do_what_they_say(project: Project, store: Store, maps: Path) -> None:
    """From some pages that failed to a batch that is done, by nothing but what is advised."""
    batch = upload(project, store, maps).batch_id
    work(project, store, failing("dist/page-003.html", code="timeout"), max_attempts=1)
    for step in next_steps_of(view_batch(project, store, batch)):
        task, *options = shlex.split(step.command.removeprefix("invoke "))
        assert invoke(project.root, task, *options).returncode == 0
    view = view_batch(project, store, batch)
    assert view.status == "completed"
    assert [step.command for step in next_steps_of(view)] == [
        f"invoke nimbus.batch.report --batch={batch} --open"
    ]
