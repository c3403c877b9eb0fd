"""The browser that is opened: one that shows pages, or none."""

from __future__ import annotations

import webbrowser

import pytest

from nimbus_tasks.ui.browser import open_in_browser


class Browser(webbrowser.BaseBrowser):
    """One that takes note of what it is to show."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: list[str] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        self.opened.append(url)
        return True


@pytest.mark.parametrize(("name", "opens"), [("firefox", True), ("w3m", False)])
@pytest.mark.parametrize("folder", ["", "/usr/bin/"])
def test_a_browser_that_takes_the_terminal_is_none(
    monkeypatch: pytest.MonkeyPatch, folder: str, name: str, opens: bool
) -> None:
    browser = Browser(folder + name)
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    assert open_in_browser("http://127.0.0.1:1/") is opens
    assert browser.opened == ["http://127.0.0.1:1/"] * opens


@pytest.mark.parametrize("error", [webbrowser.Error("none"), PermissionError("no")])
def test_no_browser_is_no_fault(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def get() -> webbrowser.BaseBrowser:
        raise error

    monkeypatch.setattr(webbrowser, "get", get)
    assert open_in_browser("http://127.0.0.1:1/") is False
