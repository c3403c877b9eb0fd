"""A real browser for what people look at: Debian's Chromium, driven by Playwright.

``.ci/run`` installs both and axe-core; the tests install nothing. Where one is missing they are
skipped on a person's machine, and fail in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.dashboard.served import Served, served
from tests.factories import failing, upload, work

_AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_INSTALL = "a package manager's chromium, and: npm ci --prefix tests/browser"
#: Nothing but the page itself is asked for anything, and root may run it.
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: Makes a page of a context of its own; takes what Playwright's ``new_context`` takes.
NewPage = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser, started once a module: while it runs, so does an event loop, and tests of other
    modules want one of their own."""
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None or not _AXE.exists():
        reason = f"no browser or no axe-core to test in; it takes {_INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(f"in CI this is no reason to skip: {reason}", pytrace=False)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*_OPTIONS])
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[NewPage]:
    """Make pages, each in a context of its own; they end with the test."""
    contexts: list[BrowserContext] = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(**options)
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()


def violations(page: Page) -> list[str]:
    """What axe-core has against the page as it stands: rule, and the elements."""
    # Not by a script element: the page's own content security policy would refuse it.
    page.evaluate(_AXE.read_text(encoding="utf-8") + "; 0")
    found = page.evaluate("axe.run().then(results => results.violations)")
    return [
        f"{rule['id']}: {', '.join(node['html'][:120] for node in rule['nodes'])}" for rule in found
    ]


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
