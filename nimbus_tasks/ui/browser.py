"""The person's browser."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path

#: They take the terminal, and run none of a page's script.
_TEXT_BROWSERS = frozenset(("www-browser", "links", "elinks", "lynx", "w3m"))


def open_in_browser(url: str) -> bool:
    """Show ``url`` to the person; whether there is a browser that does."""
    with suppress(webbrowser.Error, OSError):
        browser = webbrowser.get()
        if Path(getattr(browser, "name", "")).name not in _TEXT_BROWSERS:
            return browser.open(url)
    return False
