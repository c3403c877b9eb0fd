"""What the page is sent: what the tasks say too, clean, short, and what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.batch.list import list_batches
from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.keys import logs_key, page_id_for
from nimbus_tasks.core.project import Project
from nimbus_tasks.dashboard import documents
from nimbus_tasks.kv.store import Store
from tests.dashboard.served import Served, served
from tests.factories import a_map, upload, work, write_map

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202egnp.exe\x00\u2028"


def test_a_look_has_what_status_says(
    project: Project, store: Store, batch: str, dashboard: Served
) -> None:
    look = dashboard.look(batch)
    head = batches.find(store, project.project_id, batch)
    status = batches.look(store, head, utc_now()).to_json()
    assert {name: look[name] for name in status} == status
    assert look["counts"]["failed"] == 3
    assert look["percent"] == "100%"
    assert [(g["code"], g["count"], g["with_code"]) for g in look["groups"]] == [
        ("broken", 2, 2),
        ("refused", 1, 1),
    ]
    assert {page["name"] for page in look["failures"]} == {
        f"dist/page-00{n}.html" for n in (1, 2, 3)
    }
    assert [step["command"] for step in look["next"]] == [
        f"invoke nimbus.batch.report --batch={batch} --open",
        f"invoke nimbus.batch.retry --batch={batch}",
        f"invoke nimbus.worker --batch={batch}",
    ]


def test_the_list_has_what_list_says(
    project: Project, store: Store, batch: str, dashboard: Served
) -> None:
    (row,) = dashboard.look()["batches"]
    (expected,) = [row.to_json() for row in list_batches(project, store)]
    assert {name: row[name] for name in expected} == expected


def test_a_project_without_a_store_has_no_batches_and_no_fault(dashboard: Served) -> None:
    with dashboard.events() as events:
        assert next(events) == (
            "look",
            {"age": pytest.approx(0, abs=20), "note": "", "document": documents.NO_BATCHES},
        )
        assert next(events)[0] == "same"


def test_pages_in_flight_are_told_with_step_and_progress(
    project: Project, store: Store, maps: Path, dashboard: Served
) -> None:
    batch_id = str(upload(project, store, maps).batch_id)
    seen: list[dict[str, Any]] = []

    def process(page: Any, progress: Any) -> Any:
        if page["source_path"] != "dist/page-000.html":
            return {"changes": 0}
        progress("ask the model", 60)
        with dashboard.events(batch_id) as events:
            for name, data in events:
                if name == "look" and any(p["progress"] for p in data["document"]["in_flight"]):
                    seen.append(data["document"])
                    return {"changes": 0}
        raise AssertionError("the events ended")

    work(project, store, process, concurrency=1)
    (look,) = seen
    assert look["next"] == []  # to watch it would be next, which the page does
    (page,) = [one for one in look["in_flight"] if one["progress"]]
    assert (page["name"], page["step"], page["progress"], page["stalled"]) == (
        "dist/page-000.html",
        "ask the model",
        60,
        False,
    )


def test_text_from_outside_is_clean_and_short(
    project: Project, store: Store, dashboard: Served
) -> None:
    folder = project.folder / "maps"
    write_map(folder, "one.json", a_map("dist/" + "x" * 400 + "<img src=x>.html"))
    batch_id = upload(project, store, folder).batch_id

    def process(page: Any, progress: Any) -> Any:
        progress(HOSTILE, 10)
        raise ProcessorError(HOSTILE + "y" * 5_000_000, code=HOSTILE)

    work(project, store, process)
    (failed,) = dashboard.look(batch_id)["failures"]
    log = dashboard.get(f"batches/{batch_id}/log?page={failed['page_id']}").json()
    assert len(failed["name"]) < 300
    assert failed["name"].startswith("dist/xxx")
    assert failed["name"].endswith("xxx…")  # a listing has the beginning of a long path
    assert len(log["name"]) == 300
    assert log["name"].startswith("…xxx")
    assert log["name"].endswith("xx<img src=x>.html")
    assert len(json.dumps(log)) < 50_000
    for said in (
        failed["error"],
        failed["code"],
        log["error"],
        *(e["message"] for e in log["entries"]),
    ):
        assert said.startswith("<script>alert(1)</script>gnp.exe")
        assert said.isprintable()


def test_a_log_is_found_by_id_and_by_path(project: Project, batch: str, dashboard: Served) -> None:
    page_id = page_id_for(project.project_id, "dist/page-001.html")
    by_id = dashboard.get(f"batches/{batch}/log?page={page_id}").json()
    by_path = dashboard.get(f"batches/{batch}/log?page=dist/page-001.html").json()
    assert by_id == by_path
    assert (by_id["name"], by_id["status"], by_id["code"]) == (
        "dist/page-001.html",
        "failed",
        "broken",
    )
    assert by_id["entries"][-1]["level"] == "error"
    assert "look" in [entry["step"] for entry in by_id["entries"]]


def test_of_a_long_log_the_end_is_shown_and_entries_of_others_are_no_trouble(
    project: Project, store: Store, batch: str, dashboard: Served
) -> None:
    page_id = page_id_for(project.project_id, "dist/page-001.html")
    entries = [{"message": f"line {n}"} for n in range(500)]
    odd: list[object] = [
        7,
        None,
        {"timestamp": 5, "level": [], "step": {}, "message": None, "duration_ms": "x"},
    ]
    store.put(logs_key(project.project_id, page_id), json.dumps({"entries": [*entries, *odd]}))
    log = dashboard.get(f"batches/{batch}/log?page={page_id}").json()
    assert log["earlier"] == 303
    assert len(log["entries"]) == documents.MOST_LOG_ENTRIES
    assert log["entries"][0]["message"] == "line 303"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("batches/{batch}/log", 404),
        ("batches/{batch}/log?page=", 400),
        ("batches/{batch}/log?page=none", 404),
        ("batches/none/log?page=dist/page-001.html", 404),
    ],
)
def test_what_is_not_there_is_said_in_a_line(
    batch: str, dashboard: Served, path: str, status: int
) -> None:
    answer = dashboard.get(path.format(batch=batch))
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("name", ["none", "latest", "../x", "%ff", "x" * 5000])
def test_a_batch_that_is_not_there_is_a_fault_that_says_so(
    dashboard: Served, batch: str, name: str
) -> None:
    with dashboard.events(name) as events:
        kind, fault = next(events)
    assert (kind, fault["missing"], fault["age"]) == ("fault", True, None)
    assert "there is no batch" in fault["message"]


def test_a_store_that_goes_away_is_told_with_the_age_and_comes_back(
    project: Project, batch: str, dashboard: Served
) -> None:
    away = project.root / "away"
    with dashboard.events(batch) as events:
        assert next(events)[0] == "look"
        shutil.move(project.folder, away)
        # The first may come from a look that had begun before.
        fault = next(data for name, data in events if name == "fault")
        assert fault["age"] >= 0
        later = next(data for name, data in events if name == "fault")
        assert later["message"].endswith("kv.sqlite3 is gone")
        assert later["age"] >= fault["age"]
        shutil.move(away, project.folder)
        assert next(name for name, _ in events if name != "fault") == "same"
    assert dashboard.act(f"batches/{batch}/retry").status_code == 200


def test_an_action_on_a_store_that_is_gone_says_so(
    project: Project, batch: str, dashboard: Served
) -> None:
    assert dashboard.look(batch)
    shutil.move(project.folder, project.root / "away")
    answer = dashboard.act(f"batches/{batch}/cancel")
    assert answer.status_code == 503
    assert "is gone" in answer.json()["error"]


def test_a_damaged_store_is_told_too(project: Project, dashboard: Served) -> None:
    project.store_path.write_bytes(b"no database" * 1000)
    with dashboard.events() as events:
        kind, fault = next(events)
    assert kind == "fault"
    assert "damaged" in fault["message"]


def test_it_says_goodbye(project: Project, batch: str) -> None:
    with served(project) as dashboard:
        answer = dashboard.events(batch)
        events = answer.__enter__()
        assert next(events)[0] == "look"
    assert [name for name, _ in events][-1] == "bye"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "what was sent is no JSON: "),
        (b"[]", "what was sent is no JSON object"),
        (b"{", "what was sent is no JSON: "),
        (b'"x"', "what was sent is no JSON object"),
        (b'{"reason": "\xff"}', "what was sent is not UTF-8 text, from byte 12"),
        (b"[" * 5000, "what was sent is "),  # to some Python too deep, to another no JSON
        (b'{"reason": 5}', "'reason' takes a text, not 5"),
        (b'{"reason": {"why": "so"}}', '\'reason\' takes a text, not {"why": "so"}'),
        (b'{"reason": ["so"]}', "'reason' takes a text, not [\"so\"]"),
        (b'{"error": 5}', "'error' is nothing that this takes"),
        (b'{"reason": " "}', "The reason is empty"),
        (b'{"reason": "\\ud800"}', "what was sent holds half of a surrogate pair"),
        (b'{"reason": "' + b"x" * 30_000 + b'"}', "that is more than an action needs"),
    ],
)
def test_what_is_no_action_is_refused_and_nothing_is_changed(
    project: Project, store: Store, maps: Path, dashboard: Served, body: bytes, words: str
) -> None:
    batch_id = upload(project, store, maps).batch_id
    answer = dashboard.act(f"batches/{batch_id}/cancel", body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(words)
    assert "invoke.yaml" not in answer.text
    assert dashboard.look(batch_id)["status"] == "queued"
