"""A picture of ``monitor`` in the middle of a real batch: what a terminal shows, as a browser draws
it.

``terminal_picture(browser, project, processor)`` gives a PNG for each colour scheme; the project's
batch is uploaded and waits. The screen is that of a real pseudo-terminal, cell by cell.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pyte
from playwright.sync_api import Browser

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.terminal.pseudo_terminal import PseudoTerminal  # noqa: E402 - from the repository

SIZE = (84, 22)
#: The 8 colours of a terminal that we use, for a light and a dark one.
SCHEMES = {
    "light": {
        "back": "#ffffff", "default": "#1f2328", "red": "#b42318", "green": "#1a7f37",
        "brown": "#8a5a00", "blue": "#0550ae", "brightblack": "#656d76",
    },
    "dark": {
        "back": "#0d1117", "default": "#e6edf3", "red": "#ff7b72", "green": "#56d364",
        "brown": "#e3b341", "blue": "#79c0ff", "brightblack": "#8b949e",
    },
}  # fmt: skip
_STYLE = """body {{ margin: 0; display: inline-block; background: {back}; color: {default} }}
pre {{ margin: 0; padding: 14px 18px; font: 15px/1.35 'DejaVu Sans Mono', monospace }}
span {{ display: inline-block; overflow: visible; white-space: pre }}"""


def html_of(screen: pyte.Screen, scheme: str) -> str:
    """The screen as a page: every cell at its place, whatever width a font gives its sign."""
    colours = SCHEMES[scheme]
    rows = []
    for y in range(screen.lines):
        line, cells = screen.buffer[y], []
        for x in range(screen.columns):
            cell = line[x]
            if not cell.data:  # the right half of a sign that is two columns wide
                continue
            is_wide = x + 1 < screen.columns and not line[x + 1].data
            style = (
                f"width:{2 if is_wide else 1}ch;color:{colours.get(cell.fg, colours['default'])}"
            )
            style += ";font-weight:bold" if cell.bold else ""
            cells.append(f'<span style="{style}">{html.escape(cell.data)}</span>')
        rows.append("".join(cells))
    page = "\n".join(rows)
    return f"<meta charset=utf-8><style>{_STYLE.format(**colours)}</style><pre>{page}</pre>"


def terminal_picture(browser: Browser, project: Path, processor: str) -> dict[str, bytes]:
    """A PNG for each scheme, of a moment when some pages are done, some fail and some wait."""
    command = [sys.executable, "-m", "invoke"]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "docs"), str(project)])
    worker = subprocess.Popen(
        [*command, "nimbus.worker", f"--processor={processor}", "--concurrency=6"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monitor = [*command, "nimbus.batch.monitor", "--interval=0.3"]
    try:
        with PseudoTerminal(monitor, project, *SIZE) as terminal:
            terminal.until(lambda: _is_telling(terminal.lines))
            pages = {scheme: html_of(terminal.screen, scheme) for scheme in SCHEMES}
    finally:
        worker.terminate()
        worker.wait()
    return {scheme: _drawn(browser, page) for scheme, page in pages.items()}


def _is_telling(lines: list[str]) -> bool:
    text = "\n".join(lines)
    share = re.search(r"pages +(\d+)%", text)
    return share is not None and 35 <= int(share[1]) < 80 and "failed " in text and "left" in text


def _drawn(browser: Browser, page_html: str) -> bytes:
    page = browser.new_page(device_scale_factor=1)
    page.set_content(page_html)
    png = page.locator("body").screenshot()
    page.close()
    return png
