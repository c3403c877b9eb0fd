"""The dashboard in a browser: what it shows of a batch, and what can be done, by keyboard too."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.browser.conftest import NewPage, counts_shown, status, violations
from tests.dashboard.served import Served
from tests.factories import invoke, upload, work


def test_a_batch_is_followed_from_the_list_to_its_end(
    project: Project, store: Store, new_page: NewPage, dashboard: Served, queued: str
) -> None:
    page = new_page()
    page.goto(dashboard.url)
    row = page.get_by_role("link", name=re.compile(queued))
    expect(row).to_contain_text("10 to go")
    row.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page.locator(".percent")).to_have_text("0%")

    go_on, begun = threading.Event(), threading.Event()

    def process(one: Mapping[str, Any], progress: Callable[..., None]) -> Mapping[str, Any]:
        if one["source_path"] == "dist/page-004.html":
            progress("asking the model", 60)
            begun.set()
            assert go_on.wait(20)
        if one["source_path"] == "dist/page-001.html":
            raise ProcessorError("no verb in the title", code="refused")
        return {"changes": 0}

    def in_a_thread_of_its_own() -> None:
        with project.open_store() as other:
            work(project, other, process, concurrency=1)

    worker = threading.Thread(target=in_a_thread_of_its_own)
    worker.start()
    try:
        assert begun.wait(20)
        flight = page.get_by_role("region", name=re.compile("In flight"))
        at_work = flight.get_by_role("listitem").filter(has_text="page-004")
        expect(at_work).to_contain_text("asking the model")
        expect(at_work).to_contain_text("60%")
        group = page.get_by_role("region", name=re.compile("Failed"))
        expect(group).to_contain_text("no verb in the title")
        expect(page.locator(".state").first).to_have_text("processing")
        assert violations(page) == []
    finally:
        go_on.set()
        worker.join()
    expect(page.locator(".state").first).to_have_text("partially completed")
    expect(page.locator(".percent")).to_have_text("100%")
    expect(flight).to_be_hidden()
    expect(page).to_have_title(re.compile("partially completed"))
    expect(page.locator("#heard")).to_have_text(f"{queued}: partially completed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_everybody_can_use_it(
    new_page: NewPage, dashboard: Served, failed: str, scheme: str, width: int
) -> None:
    page = new_page(color_scheme=scheme, viewport={"width": width, "height": 700})
    page.goto(dashboard.url)
    expect(page.get_by_role("link", name=re.compile(failed))).to_be_visible()
    assert violations(page) == []
    page.goto(f"{dashboard.url}#{failed}")
    expect(page.locator(".percent")).to_have_text("100%")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Retry failed pages").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="dist/page-001.html").click()
    expect(page.get_by_role("dialog")).to_contain_text("cannot do dist/page-001.html")
    assert violations(page) == []


def test_an_empty_project_says_how_to_begin_and_shows_the_first_batch(
    project: Project, new_page: NewPage, dashboard: Served, maps: Path
) -> None:
    page = new_page()
    page.goto(dashboard.url)
    expect(page.get_by_text("invoke nimbus.upload")).to_be_visible()
    assert violations(page) == []
    with project.open_store(create=True) as store:
        batch_id = str(upload(project, store, maps).batch_id)
    expect(page.get_by_role("link", name=re.compile(batch_id))).to_be_visible()


def test_the_counts_are_those_of_status(
    project: Project, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page = new_page()
    page.goto(f"{dashboard.url}#{failed}")
    expect(page.locator(".percent")).to_have_text("100%")
    ran = invoke(project.root, "nimbus.batch.status", f"--batch={failed}", "--json")
    counts = json.loads(ran.stdout)["counts"]
    assert counts_shown(page) == {state: number for state, number in counts.items() if number}


def test_a_retry_is_asked_for_and_can_be_left(
    project: Project, store: Store, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page = new_page()
    page.goto(f"{dashboard.url}#{failed}")
    opener = page.get_by_role("button", name="Retry failed pages")
    opener.click()
    question = page.get_by_role("dialog")
    expect(question).to_contain_text("Queue 2 pages again?")
    expect(question.get_by_role("button", name="Leave them")).to_be_focused()
    page.keyboard.press("Enter")
    expect(question).to_be_hidden()
    opener.click()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    assert status(project, store, failed)["counts"]["failed"] == 2

    page.get_by_role("button", name="Retry pages that failed with refused").click()
    question.get_by_role("button", name="Queue 1 page again").click()
    expect(question).to_be_hidden()
    expect(page.locator("#said")).to_contain_text("1 page of")
    expect(page.locator(".state").first).to_have_text("retrying")
    found = status(project, store, failed)["counts"]
    assert (found["failed"], found["queued"]) == (1, 1)
    opener.click()
    question.get_by_role("button", name="Queue 1 page again").click()
    expect(page.locator(".counts")).not_to_contain_text("failed")
    assert status(project, store, failed)["counts"]["queued"] == 2


def test_a_cancel_is_asked_for_with_a_reason_and_can_be_left(
    project: Project, store: Store, new_page: NewPage, dashboard: Served, queued: str
) -> None:
    page = new_page()
    page.goto(f"{dashboard.url}#{queued}")
    opener = page.get_by_role("button", name="Cancel batch")
    opener.click()
    question = page.get_by_role("dialog")
    expect(question).to_contain_text("10 pages that wait will not start")
    question.get_by_role("button", name="Let it go on").click()
    opener.click()
    page.keyboard.press("Enter")  # in the field of the reason: by habit
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    assert status(project, store, queued)["status"] == "queued"

    opener.click()
    question.get_by_label("Reason").fill("prices <b>change</b> on Monday")
    question.get_by_role("button", name="Cancel the batch").click()
    expect(page.locator(".state").first).to_have_text("cancelled")
    expect(page.get_by_text("reason: prices <b>change</b> on Monday")).to_be_visible()
    expect(opener).to_be_hidden()
    assert (
        batches.find(store, project.project_id, queued).reason == "prices <b>change</b> on Monday"
    )


def test_an_action_that_fails_says_why_and_can_be_tried_again(
    project: Project, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page = new_page()
    page.goto(f"{dashboard.url}#{failed}")
    page.get_by_role("button", name="Retry failed pages").click()
    question, away = page.get_by_role("dialog"), project.root / "away"
    shutil.move(project.folder, away)
    question.get_by_role("button", name="Queue 2 pages again").click()
    expect(question.get_by_role("alert")).to_contain_text("is gone")
    shutil.move(away, project.folder)
    question.get_by_role("button", name="Queue 2 pages again").click()
    expect(question).to_be_hidden()


def test_a_log_is_found_by_path(new_page: NewPage, dashboard: Served, failed: str) -> None:
    page = new_page()
    page.goto(f"{dashboard.url}#{failed}")
    page.get_by_label("Log of a page").fill("dist/page-003.html")
    page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog")
    expect(sheet).to_contain_text("done · attempt 1")
    expect(sheet.get_by_role("listitem").first).to_contain_text("look")
    page.keyboard.press("Escape")
    page.get_by_label("Log of a page").fill("dist/none.html")
    page.keyboard.press("Enter")
    expect(sheet).to_contain_text("has no page dist/none.html")
