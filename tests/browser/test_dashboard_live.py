"""The dashboard in a browser while others change what it shows: tabs, a store, a server."""

from __future__ import annotations

import re
import shutil
import signal

import pytest
from playwright.sync_api import expect

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.browser.conftest import NewPage, counts_shown, violations
from tests.dashboard.served import Served, looks_taken, served
from tests.dashboard.test_command import running


def test_two_tabs_show_the_same_for_one_read(
    project: Project,
    store: Store,
    new_page: NewPage,
    failed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = looks_taken(monkeypatch)
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
