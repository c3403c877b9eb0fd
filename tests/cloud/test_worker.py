"""The Worker on Cloudflare's own runtime: the main job, and what may happen in it.

Pages are uploaded, watched and reported by the tasks; the cron trigger is called by hand; what is
done to a page does a service of the test.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from nimbus_tasks.core.keys import page_id_for, page_key
from tests.cloud.conftest import Cloud, paths
from tests.factories import REPOSITORY, environment_for, invoke_command

MANY = 1000

#: The local Queue has one invocation at a time, of five pages.
AT_ONCE = 5


def test_the_main_job(cloud: Cloud) -> None:
    """The sample site, uploaded, worked on by the Worker and reported; all commands agree."""
    shutil.copytree(REPOSITORY / ".nimbus" / "maps", cloud.project.folder / "maps")
    cloud.set(PROCESSOR_SECRET="hush")
    uploaded = cloud.document("nimbus.upload")
    assert cloud.tick()["sent"] == 22
    cloud.until_ended()

    status = cloud.document("nimbus.batch.status", "--batch=latest")
    report = cloud.document("nimbus.batch.report")
    metrics = cloud.document("nimbus.batch.metrics")
    assert {status["status"], report["status"], metrics["status"]} == {"completed"}
    assert status["counts"]["done"] == uploaded["page_count"] == 22
    assert (metrics["total_changes"], metrics["average_confidence"]) == (44, 0.75)
    assert {page["attempts"] for page in report["pages"]} == {1}
    assert {page["log_entries"] for page in report["pages"]} == {2}
    assert sum(cloud.service.asked.values()) == 22
    assert cloud.service.secrets == {"Bearer hush"}
    assert cloud.verified() == []
    cloud.run("nimbus.batch.wait")

    sample = json.loads((REPOSITORY / ".nimbus" / "maps" / "about.json").read_text())
    with cloud.open() as store:
        page = page_id_for(cloud.project.project_id, sample["path"])
        entry = store.get(page_key(cloud.project.project_id, page))
    stored = json.loads(entry.value)
    assert (stored["extraction"], stored["optimization"]) == (sample, {"title": "better"})
    assert entry.metadata["sha256"]
    assert cloud.tick() == {"idle": True}


def test_what_a_page_costs(cloud: Cloud) -> None:
    """Four reads, four writes and a deletion; what the ticks do besides is a few for all."""
    cloud.upload(paths(100))
    cloud.set(CONCURRENCY=100)
    assert cloud.tick()["operations"] <= 10
    cloud.until(lambda counts: counts == {"done": 100}, ticks=False)
    counted = cloud.counted()
    assert 400 <= counted["getWithMetadata"] <= 430  # status, content, log, status
    assert 400 <= counted["put"] <= 430  # claim, content, log, outcome
    assert (counted["delete"], counted["sendBatch"]) == (100, 1)
    # Whether the batch is cancelled, once an invocation: of up to five pages.
    assert counted["list"] + counted.get("get", 0) <= 5 + 100 / 2


CODES = {
    "throws": "http_500",
    "rubbish": "bad_result",
    "list": "bad_result",
    "boast": "bad_result",
    "negative": "bad_result",
    "says": "thin",
    "moved": "http_302",
    "hangs": "timeout",
}


def test_whatever_the_service_does_pages_end_and_a_retry_mends_them(cloud: Cloud) -> None:
    cloud.set(PAGE_SECONDS=1)
    batch = cloud.upload([*(f"dist/{word}.html" for word in CODES), *paths(2)])
    cloud.until_ended()
    failed = {
        page["path"].split("/")[1].split(".")[0]: page
        for page in cloud.document("nimbus.batch.report")["pages"]
        if page["status"] == "failed"
    }
    assert {word: page["code"] for word, page in failed.items()} == CODES
    assert failed["says"]["error"] == "too thin"
    assert cloud.document("nimbus.batch.wait", code=3)["counts"]["done"] == 2

    cloud.service.mended = True
    assert len(cloud.document("nimbus.batch.retry")["requeued"]) == len(CODES)
    cloud.until(lambda counts: counts == {"done": len(CODES) + 2})
    cloud.tick()
    report = cloud.document("nimbus.batch.report", f"--batch={batch}")
    assert report["status"] == "completed"
    attempts = {page["path"]: page["attempts"] for page in report["pages"]}
    assert sorted(attempts.values()) == [1] * 2 + [2] * len(CODES)
    assert cloud.verified() == []


def test_a_service_that_is_busy_is_asked_again_within_the_attempt(cloud: Cloud) -> None:
    cloud.upload(["dist/busy.html", "dist/always-full.html", "dist/cut.html"])
    cloud.set(LEASE_SECONDS=2)
    cloud.until_ended()
    cut = cloud.statuses()["dist/cut.html"]  # in the middle of an answer
    assert (cut["status"], cut["attempts"]) == ("done", 1)
    busy, full = (cloud.statuses()[f"dist/{name}.html"] for name in ("busy", "always-full"))
    assert (busy["status"], busy["attempts"]) == ("done", 1)
    assert cloud.service.asked["dist/busy.html"] == 2
    assert (full["status"], full["error"]["code"], full["attempts"]) == ("failed", "http_503", 1)
    assert cloud.service.asked["dist/always-full.html"] == 5


def test_a_retry_right_after_an_upload_counts_every_attempt(cloud: Cloud) -> None:
    """What this directory wrote a moment ago the Worker has written over since."""
    cloud.upload(["dist/throws.html"])
    cloud.until(lambda counts: counts == {"failed": 1})
    cloud.service.mended = True
    assert len(cloud.document("nimbus.batch.retry")["requeued"]) == 1
    cloud.until(lambda counts: counts == {"done": 1})
    assert cloud.statuses()["dist/throws.html"]["attempts"] == 2
    assert cloud.document("nimbus.batch.report")["pages"][0]["log_entries"] == 4


def test_a_failed_page_is_tried_as_often_as_it_may(cloud: Cloud) -> None:
    cloud.set(MAX_ATTEMPTS=3)
    cloud.upload(["dist/throws.html"])
    cloud.until_ended()
    assert cloud.statuses()["dist/throws.html"]["attempts"] == 3
    assert cloud.document("nimbus.batch.report")["pages"][0]["log_entries"] == 6


def test_a_cancel_in_the_middle_lets_pages_in_flight_finish(cloud: Cloud) -> None:
    cloud.set(CONCURRENCY=2)
    cloud.service.gate.clear()
    cloud.upload(paths(20))
    assert cloud.tick()["sent"] == 6
    cloud.in_hand(AT_ONCE)
    cancelled = cloud.document("nimbus.batch.cancel", "--batch=latest", "--reason=enough")
    assert (cancelled["cancelled"], cancelled["in_flight"]) == (15, 5)
    cloud.tick()
    cloud.service.gate.set()
    cloud.until_ended()
    assert cloud.counts() == {"done": 5, "cancelled": 15}
    cloud.run("nimbus.batch.wait", code=7)
    [listed] = cloud.document("nimbus.batch.list")["batches"]
    assert listed["status"] == "cancelled"
    assert cloud.verified() == []
    assert len(cloud.document("nimbus.batch.retry", "--include-cancelled")["requeued"]) == 15
    cloud.until(lambda counts: counts == {"done": 20})


def test_pages_of_a_cancelled_batch_that_are_queued_still_are_cancelled(cloud: Cloud) -> None:
    """As where a cancel was cut off, or a page came back from a claim that lapsed."""
    batch = cloud.upload(paths(3))
    with cloud.open() as store:
        entry = store.get(f"batch:{cloud.project.project_id}:{batch}")
        value = {**json.loads(entry.value), "intent": "cancel"}
        store.put(entry.key, json.dumps(value), {**entry.metadata, "intent": "cancel"})
    cloud.tick()
    cloud.until(lambda counts: counts == {"cancelled": 3}, ticks=False)
    assert not cloud.service.asked
    cloud.tick()
    assert cloud.verified() == []


def test_a_page_that_is_uploaded_anew_belongs_to_the_new_batch(cloud: Cloud) -> None:
    """What was in hand of the old one has no outcome."""
    cloud.service.gate.clear()
    old = cloud.upload(paths(2))
    cloud.tick()
    cloud.in_hand(2)
    [kept, again] = paths(2)
    new = cloud.upload([again])
    cloud.service.gate.set()
    cloud.until(lambda _: cloud.statuses()[kept]["status"] == "done")  # of the old batch
    cloud.until_ended()
    status = cloud.statuses()[again]
    assert (status["batch_id"], status["status"]) == (new, "done")
    counts = cloud.document("nimbus.batch.status", f"--batch={old}")["counts"]
    assert (counts["done"], counts["cancelled"]) == (1, 1)
    assert cloud.statuses()[kept]["batch_id"] == old
    cloud.tick()
    assert cloud.verified() == []


def test_records_of_the_seed_are_worked_on(cloud: Cloud) -> None:
    """Without metadata, without our fields; unknown ones are carried along."""
    cloud.upload(paths(1))
    project = cloud.project.project_id
    with cloud.open() as store:
        [info] = list(store.scan(f"status:{project}:"))
        value = json.loads(store.get(info.key).value)
        seed = {
            "status": "queued",
            "batch_id": value["batch_id"],
            "updated": "2026-11-24T08:00:00.000Z",
        }
        store.put(info.key, json.dumps({**seed, "theirs": [1]}), None)
    cloud.until_ended()
    status = json.loads(cloud.value(info.key))
    assert (status["status"], status["attempts"], status["theirs"]) == ("done", 1, [1])


def test_a_thousand_pages_as_status_and_monitor_see_them(cloud: Cloud) -> None:
    """They move from state to state, and always add up to all of them."""
    cloud.set(CONCURRENCY=200)
    cloud.service.gate.clear()
    cloud.upload(paths(MANY))
    watching = subprocess.Popen(
        invoke_command(cloud.root, "nimbus.batch.monitor", "--interval=1", "--json"),
        cwd=cloud.root,
        env=environment_for(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline())["counts"]]  # before the first is claimed
        assert cloud.tick()["sent"] == 600
        cloud.in_hand(AT_ONCE)
        asked = cloud.document("nimbus.batch.status", "--batch=latest")["counts"]
        assert (asked["queued"], asked["processing"]) == (MANY - AT_ONCE, AT_ONCE)
        cloud.service.gate.set()
        cloud.until(lambda counts: counts == {"done": MANY}, pause=1.0)
        cloud.tick()
        seen, _ = watching.communicate(timeout=120)
    finally:
        watching.kill()
    assert watching.returncode == 0
    looks += [asked, *(json.loads(line)["counts"] for line in seen.splitlines())]
    assert all(sum(counts.values()) == MANY for counts in looks)
    states = {state for counts in looks for state, count in counts.items() if count}
    assert states == {"queued", "processing", "done"}
    done = [counts["done"] for counts in looks]
    assert done[0] == 0
    assert done[-1] == MANY
    assert len(set(done)) > 3
    assert done[2:] == sorted(done[2:])
    assert cloud.service.asked == dict.fromkeys(paths(MANY), 1)
    assert cloud.verified() == []
    assert cloud.document("nimbus.batch.status", "--batch=latest")["status"] == "completed"


@pytest.mark.parametrize("value", ["nowhere", "http://example.com/"])
def test_an_address_that_a_secret_must_not_go_to(cloud: Cloud, value: str) -> None:
    cloud.set(PROCESSOR_URL=value)
    cloud.upload(paths(1))
    cloud.until_ended()
    [status] = cloud.statuses().values()
    assert status["error"]["code"] == "not_configured"
