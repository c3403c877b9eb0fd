"""The README's pictures, made from a real run on the sample pages: ``python docs/pictures.py``.

It takes the packages of ``pip install -e '.[dev]'`` and a Chromium. Names on the command line
choose among the pictures; a new one is a function in ``PICTURES``: it gets the browser and a
project whose batch has been uploaded and waits, and writes its files.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ViewportSize, sync_playwright
from terminal_picture import terminal_picture

from nimbus_tasks.core.errors import ProcessorError

REPOSITORY = Path(__file__).parents[1]
PICTURES_FOLDER = REPOSITORY / "docs" / "pictures"
#: GitHub shows a README's pictures some 900 pixels wide.
VIEWPORT = ViewportSize(width=1100, height=1240)
LIVE_VIEWPORT = ViewportSize(width=1100, height=980)
PROCESSOR, LIVE_PROCESSOR = "pictures:now_and_then_refused", "pictures:slowly_refused"
MOST_BYTES = 150_000


def now_and_then_refused(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """A processor like one that asks a model: slow, and refused now and then."""
    return _refused(page, progress, 1.0)


def slowly_refused(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """The same, slow enough for a look at it."""
    return _refused(page, progress, 12.0)


def _refused(
    page: Mapping[str, Any], progress: Callable[..., None], slowness: float
) -> dict[str, Any]:
    path = page["source_path"]
    chance = random.Random(path)
    seconds = chance.lognormvariate(-1.2, 0.6) * slowness
    for percent, step in ((10, "reading"), (30, "asking the model"), (80, "checking the answer")):
        progress(step, percent)
        time.sleep(seconds / 3)
    luck = chance.random()
    if luck < 0.12:
        raise ProcessorError(
            f"429 Too Many Requests: retry after {chance.randrange(5, 40)} s", code="rate_limited"
        )
    if luck < 0.2:
        raise ValueError(f"no main heading in {path}")
    return {"changes": chance.randrange(1, 9), "confidence": min(1.0, chance.gauss(0.8, 0.1))}


def report_pictures(browser: Browser, project: Path) -> None:
    """The HTML report of the batch, as far as one screen shows it, in light and dark."""
    invoke(
        project,
        *("nimbus.worker", f"--processor={PROCESSOR}", "--concurrency=4", "--max-attempts=2"),
        *("nimbus.batch.report", "--format=html"),
    )
    (path,) = (project / ".nimbus" / "reports").glob("*.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport=VIEWPORT)
        page.goto(path.as_uri())
        page.locator("#all").wait_for()
        save(page.screenshot(), f"report-{scheme}.png")
        page.close()


def monitor_pictures(browser: Browser, project: Path) -> None:
    """The monitor in the middle of the batch, in a light and a dark terminal."""
    for scheme, png in terminal_picture(browser, project, LIVE_PROCESSOR).items():
        save(png, f"monitor-{scheme}.png")


def dashboard_pictures(browser: Browser, project: Path) -> None:
    """The dashboard in the middle of the batch, in light and dark."""
    serve = [sys.executable, "-m", "invoke", "nimbus.dashboard", "--no-open", "--port=0"]
    work = [sys.executable, "-m", "invoke", "nimbus.worker", f"--processor={LIVE_PROCESSOR}"]
    with running(serve, project) as dashboard, running([*work, "--concurrency=3"], project):
        assert dashboard.stdout is not None
        address = next(filter(None, (re.search(r"http://\S+", line) for line in dashboard.stdout)))
        pages = {
            scheme: browser.new_page(color_scheme=scheme, viewport=LIVE_VIEWPORT)
            for scheme in ("light", "dark")
        }
        for page in pages.values():
            page.goto(address[0])
            page.get_by_role("link", name=re.compile("batch_")).first.click()
        pages["light"].get_by_text(re.compile(r"^(4|5|6)\d%$")).first.wait_for(timeout=60_000)
        for scheme, page in pages.items():
            save(page.screenshot(), f"dashboard-{scheme}.png")
            page.close()


PICTURES: dict[str, Callable[[Browser, Path], None]] = {
    "report": report_pictures,
    "monitor": monitor_pictures,
    "dashboard": dashboard_pictures,
}


def sample_project(folder: Path) -> Path:
    """A copy of the sample project in which all its pages have been uploaded."""
    project = folder / "sample-site"
    shutil.copytree(REPOSITORY / ".nimbus" / "maps", project / ".nimbus" / "maps")
    shutil.copy(REPOSITORY / "tasks.py", project)
    invoke(project, "nimbus.upload")
    return project


#: With this file to take the processor from.
_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "docs")]),
}


def invoke(project: Path, *arguments: str) -> None:
    """Run ``invoke`` in the project."""
    argv = [sys.executable, "-m", "invoke", *arguments]
    subprocess.run(argv, cwd=project, env=_ENVIRONMENT, check=True)


@contextmanager
def running(argv: list[str], project: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that runs meanwhile."""
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=project, env=_ENVIRONMENT, stdout=pipe, text=True) as process:
        yield process
        process.terminate()


def save(png: bytes, name: str) -> None:
    """Write a picture, smaller where ``optipng`` is there to make it so."""
    path = PICTURES_FOLDER / name
    PICTURES_FOLDER.mkdir(exist_ok=True)
    path.write_bytes(png)
    if shutil.which("optipng"):
        subprocess.run(["optipng", "-quiet", "-o5", str(path)], check=True)
    size = path.stat().st_size
    print(f"{path.relative_to(REPOSITORY)}: {size / 1000:.0f} KB")
    if size > MOST_BYTES:
        raise SystemExit(f"{name} is larger than {MOST_BYTES:,} bytes")


def main(names: list[str]) -> None:
    """Make the pictures of those names, or all of them."""
    if unknown := set(names) - PICTURES.keys():
        raise SystemExit(f"no such picture: {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in names or PICTURES:
            PICTURES[name](browser, sample_project(Path(folder) / name))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
