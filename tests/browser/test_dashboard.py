"""The dashboard in a real browser: live, by keyboard, with several tabs, hostile pages and a server
that goes away."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.project import Project
from nimbus_tasks.dashboard.documents import LookAtBatch
from nimbus_tasks.kv.store import Store
from tests.browser.conftest import NewPage, violations
from tests.dashboard.served import Served, served
from tests.dashboard.test_command import running
from tests.factories import a_map, failing, invoke, upload, work, write_map

HOSTILE = '<script>document.title="owned"</script><img src=http://evil.test/x onerror=alert(1)>'


@pytest.fixture
def dashboard(project: Project) -> Iterator[Served]:
    with served(project, interval=0.1) as one:
        yield one


@pytest.fixture
def queued(project: Project, store: Store, maps: Path) -> str:
    """A batch of ten pages that wait."""
    return str(upload(project, store, maps).batch_id)


@pytest.fixture
def failed(project: Project, store: Store, queued: str) -> str:
    """The same, ended: eight done, one failed as broken and one as refused."""
    broken = failing("dist/page-001.html")
    refused = failing("dist/page-002.html", code="refused")

    def process(page: Mapping[str, Any], progress: Callable[..., None]) -> Mapping[str, Any]:
        return (refused if page["source_path"].endswith("002.html") else broken)(page, progress)

    work(project, store, process)
    return queued


def counts_shown(page: Page) -> dict[str, int]:
    """The counts that the page shows, by state."""
    pairs = page.locator(".counts > div")
    return {
        pair.locator("dt").inner_text(): int(pair.locator("dd").inner_text().replace(",", ""))
        for pair in pairs.all()
    }


def status(project: Project, store: Store, batch: str) -> dict[str, Any]:
    head = batches.find(store, project.project_id, batch)
    return batches.look(store, head, utc_now()).to_json()


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


def test_hostile_pages_are_text_and_nothing_else(
    project: Project, store: Store, new_page: NewPage, dashboard: Served
) -> None:
    folder = project.folder / "maps"
    write_map(folder, "one.json", a_map(f"dist/\u202e{HOSTILE}.html"))
    batch_id = upload(project, store, folder).batch_id

    def process(one: Mapping[str, Any], progress: Callable[..., None]) -> Mapping[str, Any]:
        progress(HOSTILE, 20)
        raise ProcessorError(HOSTILE + "\u202e" + "x" * 3_000_000, code=HOSTILE[:50])

    work(project, store, process)
    page, asked, faults = new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.goto(f"{dashboard.url}#{batch_id}")
    name = page.locator(".failure-row .name")
    expect(name).to_contain_text("<script>")
    name.click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror=alert(1)")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Retry failed pages").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert all(address.startswith(dashboard.url) for address in asked)
    assert faults == []
    assert "owned" not in page.title()
    assert len(page.content()) < 100_000


def test_the_page_runs_nothing_that_is_put_into_it(new_page: NewPage, dashboard: Served) -> None:
    page = new_page()
    page.goto(dashboard.url)
    refused = page.evaluate("try { document.body.innerHTML = '<b>x</b>'; 0 } catch { 1 }")
    assert refused == 1
    inline = "const s = document.createElement('script'); document.body.append(s);"
    assert (
        page.evaluate(f"try {{ {inline} s.text = 'window.ran = 1'; }} catch {{}} window.ran")
        is None
    )


class _ForeignPage(BaseHTTPRequestHandler):
    """A page of another server on this machine: the same site to a browser, another origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title>")

    def log_message(self, *_: object) -> None:
        pass


def test_another_page_can_neither_act_nor_frame_even_if_it_knows_the_address(
    project: Project, store: Store, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page = new_page()
    with ThreadingHTTPServer(("127.0.0.1", 0), _ForeignPage) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{foreign.server_port}/")
        script = """async address => {
            const ways = [{}, {mode: "no-cors"}, {headers: {"x-nimbus-action": "1"}}];
            const ask = way => fetch(address, {method: "POST", body: "{}", ...way});
            return (await Promise.allSettled(ways.map(ask))).map(one => one.value?.status ?? 0);
        }"""
        assert page.evaluate(script, f"{dashboard.url}batches/{failed}/retry") == [0, 0, 0]
        page.evaluate(
            """address => new Promise(seen => {
                const frame = document.createElement("iframe");
                Object.assign(frame, {src: address, onload: seen});
                document.body.append(frame);
            })""",
            dashboard.url,
        )
        assert page.frame_locator("iframe").get_by_role("heading", name="Batches").count() == 0
        foreign.shutdown()
    assert status(project, store, failed)["status"] == "partially_completed"


def test_a_foreign_name_for_this_machine_is_refused(new_page: NewPage, dashboard: Served) -> None:
    page = new_page()
    answer = page.goto(dashboard.url.replace("127.0.0.1", "rebound.localhost"))
    assert answer is not None
    assert answer.status == 403
    expect(page.locator("body")).to_contain_text("not the address")


def test_two_tabs_show_the_same_for_one_read(
    project: Project,
    store: Store,
    new_page: NewPage,
    failed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    real = LookAtBatch.__call__

    def counted(self: LookAtBatch, opened: Store) -> dict[str, Any]:
        taken.append(1)
        return real(self, opened)

    monkeypatch.setattr(LookAtBatch, "__call__", counted)
    with served(project, interval=3600) as dashboard:
        tabs = [new_page(), new_page()]
        for tab in tabs:
            tab.goto(f"{dashboard.url}#{failed}")
            expect(tab.locator(".percent")).to_have_text("100%")
        assert len(taken) == 1
        tabs[0].get_by_role("button", name="Retry failed pages").click()
        tabs[0].get_by_role("button", name="Queue 2 pages again").click()
        for tab in tabs:
            expect(tab.locator(".state").first).to_have_text("retrying")
        assert counts_shown(tabs[0]) == counts_shown(tabs[1])
        assert len(taken) == 2


def test_a_store_that_goes_away_is_said_with_the_age_of_what_is_shown(
    project: Project, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page, away = new_page(), project.root / "away"
    page.goto(f"{dashboard.url}#{failed}")
    expect(page.locator("#age")).to_have_text("live")
    shutil.move(project.folder, away)
    expect(page.locator("#trouble")).to_contain_text("is gone")
    expect(page.locator("#trouble-age")).to_contain_text(re.compile(r"What you see is \d+ s old"))
    expect(page.locator(".percent")).to_have_text("100%")
    assert violations(page) == []
    shutil.move(away, project.folder)
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#age")).to_have_text("live")


def test_a_server_that_was_stopped_is_said_and_found_again(
    project: Project, new_page: NewPage, failed: str
) -> None:
    page = new_page()
    with running(project.root, "--no-open") as (process, url):
        page.goto(f"{url}#{failed}")
        expect(page.locator(".percent")).to_have_text("100%")
        process.send_signal(signal.SIGINT)
        expect(page.locator("#trouble")).to_contain_text("The dashboard was stopped.")
        expect(page.locator("#trouble-age")).to_contain_text("connects again by itself")
        assert violations(page) == []
        process.communicate(timeout=20)
    with running(project.root, "--no-open") as (_, again):
        assert again == url
        expect(page.locator("#banner")).to_be_hidden(timeout=20_000)
        expect(page.locator("#age")).to_have_text("live")


def test_a_dashboard_with_another_address_is_no_longer_ours(
    project: Project, new_page: NewPage, failed: str
) -> None:
    page = new_page()
    with running(project.root, "--no-open") as (process, url):
        page.goto(f"{url}#{failed}")
        expect(page.locator(".percent")).to_have_text("100%")
        process.send_signal(signal.SIGKILL)
        expect(page.locator("#trouble")).to_contain_text("The dashboard does not answer.")
        process.communicate(timeout=20)
    (project.folder / "dashboard.json").unlink()
    port = url.split(":")[2].split("/")[0]
    with running(project.root, "--no-open", f"--port={port}"):
        expect(page.locator("#trouble")).to_contain_text("another address", timeout=20_000)
