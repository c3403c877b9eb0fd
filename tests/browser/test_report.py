"""The HTML report in a real browser: read, filtered, sorted, copied, printed, attacked."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Dialog, Page, Request

from nimbus_tasks.batch.report import write_report
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import Store
from tests.browser.conftest import NewPage, violations
from tests.ended_batches import BATCH_ID, outcomes, put_batch, put_ended_batch, write_html

PAGES = 120


@pytest.fixture
def files(project: Project, store: Store) -> Mapping[str, Path]:
    """The reports of a batch of which some pages failed, by format."""
    put_ended_batch(project, store, PAGES)
    return write_report(project, store, formats=("json", "html", "csv")).paths


class Opened:
    """A report in a browser, and all that it did there which it should not."""

    def __init__(self, page: Page, path: Path, fragment: str = "") -> None:
        self.page = page
        self.wrongs: list[str] = []
        self._address = path.as_uri()
        page.on("dialog", self._asked)
        page.on("pageerror", lambda error: self.wrongs.append(str(error)))
        page.on("console", lambda message: self.wrongs.append(message.text))
        page.on("request", self._requested)
        page.goto(self._address + fragment)

    def _asked(self, dialog: Dialog) -> None:
        self.wrongs.append(dialog.message)
        dialog.dismiss()

    def _requested(self, request: Request) -> None:
        if request.url.partition("#")[0] != self._address:
            self.wrongs.append(request.url)

    def ready(self) -> Page:
        """The page, when its table is there."""
        self.page.locator("#all").wait_for()
        return self.page


def names(page: Page) -> list[str]:
    return page.locator("#table tbody th bdi").all_inner_texts()


def pages_of(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files["json"].read_text(encoding="utf-8"))["pages"]
    return found


def test_it_says_what_the_json_and_the_csv_say(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(), files["html"]).ready()
    document = json.loads(files["json"].read_text(encoding="utf-8"))
    with files["csv"].open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    done, failed = document["counts"]["done"], document["counts"]["failed"]
    assert page.inner_text("h1") == f"{done} of {PAGES} pages are done, {failed} failed."
    assert page.inner_text(".counts").split("\n") == [f"{done} done", f"{failed} failed"]
    assert page.inner_text("#found") == f"{len(rows)} pages" == f"{PAGES} pages"
    assert sum(int(text) for text in page.locator(".group .count").all_inner_texts()) == failed
    assert [row["path"] for row in rows] == [one["path"] for one in document["pages"]]
    assert names(page) == [row["path"] for row in rows[:50]]
    first = page.locator("#table tbody tr").first.inner_text().split("\t")
    assert first[1:3] == [rows[0]["status"], rows[0]["changes"]]


def test_pages_are_found_by_text_state_and_code(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(), files["html"]).ready()
    every = pages_of(files)
    page.select_option("#state", "failed")
    failed = [one for one in every if one["status"] == "failed"]
    assert names(page) == [one["path"] for one in failed]
    code = failed[0]["code"]
    page.select_option("#code", code)
    assert names(page) == [one["path"] for one in failed if one["code"] == code]
    page.click("#clear")
    page.fill("#q", "CLOCK high")
    expected = [one["path"] for one in every if "clock" in one["path"] and "high" in one["path"]]
    assert 0 < len(expected) < 50
    assert names(page) == expected
    assert page.inner_text("#found") == f"{len(expected)} of {PAGES} pages"
    page.fill("#q", "there is no such page")
    assert names(page) == []


def test_the_pages_of_a_failure_are_a_click_away(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(), files["html"]).ready()
    group = page.locator(".group").first
    group.locator("button.filter").click()
    code = group.locator("h3").inner_text().split("\n")[0].replace("a retry may help", "").strip()
    assert names(page) == [one["path"] for one in pages_of(files) if one["code"] == code]
    assert page.evaluate("document.activeElement.id") == "pages"


def test_pages_are_sorted_by_any_column_and_back(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(), files["html"]).ready()
    every = pages_of(files)
    head = page.locator("th[data-column=time]")
    head.get_by_role("button").press("Enter")  # by keyboard, too
    ordered = sorted(every, key=lambda one: one["duration_ms"])
    assert names(page) == [one["path"] for one in ordered[:50]]
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert names(page)[0] == ordered[-1]["path"]
    assert head.get_attribute("aria-sort") == "descending"
    page.click("th[data-column=confidence] button")  # what has none comes last, either way
    page.click("th[data-column=confidence] button")
    assert "failed" not in page.locator("#table tbody").inner_text()


def test_further_pages_are_a_part_at_a_time(files: Mapping[str, Path], new_page: NewPage) -> None:
    page = Opened(new_page(), files["html"]).ready()
    every = [one["path"] for one in pages_of(files)]
    page.click("#after")
    assert names(page) == every[50:100]
    page.click("#after")
    assert names(page) == every[100:]
    assert page.inner_text("#part") == f"101 to {PAGES}"
    assert page.locator("#after").is_disabled()
    page.click("#before")
    assert names(page) == every[50:100]


def test_what_was_chosen_is_in_the_address(files: Mapping[str, Path], new_page: NewPage) -> None:
    page = Opened(new_page(), files["html"]).ready()
    page.fill("#q", "a&b=é/ #")
    page.fill("#q", "street")
    page.select_option("#state", "done")
    page.click("th[data-column=time] button")
    page.click("#after")
    chosen, fragment = names(page), page.evaluate("location.hash")
    page.reload()
    page.locator("#all").wait_for()
    assert names(page) == chosen
    assert page.input_value("#q") == "street"
    other = Opened(new_page(), files["html"], fragment).ready()
    assert names(other) == chosen
    assert other.input_value("#state") == "done"


@pytest.mark.parametrize(
    "fragment", ["#sort=x&state=y&page=-7", "#page=1e9", "#q=%FF%", "#a", "#="]
)
def test_a_broken_address_breaks_nothing(
    files: Mapping[str, Path], new_page: NewPage, fragment: str
) -> None:
    opened = Opened(new_page(), files["html"], fragment)
    opened.ready()
    assert opened.wrongs == []


def test_a_command_is_copied_whole(files: Mapping[str, Path], new_page: NewPage) -> None:
    granted = new_page(permissions=["clipboard-read", "clipboard-write"])
    page = Opened(granted, files["html"]).ready()
    command = page.locator(".steps .command").first
    command.get_by_role("button").click()
    page.wait_for_function("document.getElementById('said').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == command.locator("code").inner_text()
    assert copied.startswith(f"invoke nimbus.batch.retry --batch={BATCH_ID}")


def test_without_javascript_all_but_the_full_table_is_there(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(java_script_enabled=False), files["html"]).page
    failed = [one for one in pages_of(files) if one["status"] == "failed"]
    tables = page.locator("#static table")
    assert tables.nth(0).locator("tbody th").all_inner_texts() == [one["path"] for one in failed]
    first = tables.nth(1).locator("tbody th").all_inner_texts()
    assert first == [one["path"] for one in pages_of(files)[:50]]
    assert f"--batch={BATCH_ID} --format=json,csv" in page.inner_text("#static")
    assert not page.locator("#all").is_visible()
    assert [one for one in page.locator("button").all() if one.is_visible()] == []
    assert page.locator(".charts figure").count() == 4


def test_a_browser_that_cannot_unpack_keeps_the_plain_tables(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(files["html"].as_uri())
    page.locator("#static").wait_for()
    assert not page.locator("#all").is_visible()
    assert page.locator(".copy").first.is_visible()


def background(page: Page) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def test_it_is_dark_where_the_system_is_and_light_on_paper(
    files: Mapping[str, Path], new_page: NewPage
) -> None:
    page = Opened(new_page(color_scheme="dark"), files["html"]).ready()
    assert background(page) == "rgb(20, 21, 23)"
    page.emulate_media(media="print")
    assert background(page) == "rgb(255, 255, 255)"
    assert not page.locator("#filter").is_visible()
    assert not page.locator(".copy").first.is_visible()
    assert page.locator("#table tbody tr").first.is_visible()
    page.emulate_media(media="screen", color_scheme="light")
    assert background(page) == "rgb(252, 252, 251)"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 380)])
def test_nothing_keeps_anybody_out(
    files: Mapping[str, Path], new_page: NewPage, scheme: str, width: int
) -> None:
    page = Opened(
        new_page(color_scheme=scheme, viewport={"width": width, "height": 900}), files["html"]
    ).ready()
    for details in page.locator("summary").all():
        details.click()
    assert violations(page) == []


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=http://a.example/x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "]]>&lt;&#x3c;script&gt;",
    "\u202etxt.exe\u2066\u200b\u0000\x1b[31m",
    "א" * 50 + "⁧" + "ب" * 50,
    "javascript:alert(4)//",
    "</style></title></textarea><base href=http://a.example/>",
    "x" * 1_000_000,
    "長" * 100_000,
)


def hostile_pages() -> list[PageStatus]:
    """Pages of which every text from outside is an attack, done and failed."""
    pages = list(outcomes(2 * len(HOSTILE)))
    for at, text in enumerate(HOSTILE):
        path = f"{at}{text}"[:5_000]
        done = next(page for page in pages if page.state == "done")
        pages[2 * at] = replace(done, path="d" + path)
        pages[2 * at + 1] = replace(
            done, state="failed", path="f" + path, error=text, code=text[:80] + str(at)
        )
    return pages


@pytest.mark.parametrize("width", [1280, 380])
def test_no_text_from_outside_does_anything(
    project: Project, store: Store, new_page: NewPage, width: int
) -> None:
    put_batch(project, store, hostile_pages())
    attacked = replace(project, name=HOSTILE[0] + HOSTILE[1])
    written = write_report(attacked, store, formats=("json", "html", "csv"))
    opened = Opened(new_page(viewport={"width": width, "height": 900}), written.paths["html"])
    page = opened.ready()
    for text in ("script", "onerror", "x", ""):
        page.fill("#q", text)
    page.locator("button.filter").first.click()
    page.click("th[data-column=error] button")
    for details in page.locator("summary").all():
        details.click()
    assert opened.wrongs == []
    assert page.locator("img, base, iframe, object, link, #table script, #table svg").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "<img src=http://a.example/x onerror=alert(2)>" in page.inner_text("main")
    assert not set("\u202e\u2066\u200b\x00\x1b") & set(page.content())
    assert written.paths["html"].stat().st_size < 200_000


def test_without_javascript_the_attacks_are_text_as_well(
    project: Project, store: Store, new_page: NewPage
) -> None:
    put_batch(project, store, hostile_pages())
    path = write_report(project, store, formats=("html",)).path
    opened = Opened(new_page(java_script_enabled=False), path)
    assert opened.page.locator("img, base, iframe, object, link").count() == 0
    assert opened.wrongs == []


def test_the_policy_allows_nothing_but_its_own(
    files: Mapping[str, Path], new_page: NewPage, tmp_path: Path
) -> None:
    """Were something of an attack to get through after all, the browser would not obey it."""
    text = files["html"].read_text(encoding="utf-8")
    assert text.count("<main>") == 1
    attack = (
        "<img src=http://127.0.0.1:9/x><script>window.hit = 1</script><b onclick=x style=top:0>"
    )
    path = tmp_path / "attacked.html"
    path.write_text(text.replace("<main>", f"<main>{attack}"), encoding="utf-8")
    opened = Opened(new_page(), path)
    page = opened.ready()
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in wrong for wrong in opened.wrongs)
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"


def test_a_hundred_thousand_pages_fit_and_are_quick_to_find(
    project: Project, new_page: NewPage, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_html(path, project, outcomes(100_000))
    assert path.stat().st_size <= 2_000_000
    opened = Opened(new_page(), path)
    page = opened.ready()
    assert page.inner_text("#found") == "100,000 pages"
    page.fill("#q", "-99999.html")
    assert page.inner_text("#found") == "1 of 100,000 pages"
    page.fill("#q", "")
    page.click("th[data-column=time] button")
    page.click("th[data-column=time] button")
    assert names(page)[:10] == page.locator(".slowest tbody th").all_inner_texts()
    assert page.locator("#table tbody tr").count() == 50
    assert opened.wrongs == []
