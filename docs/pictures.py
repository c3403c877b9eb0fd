"""The README's pictures, made from a real run on the sample pages: ``python docs/pictures.py``.

It takes the packages of ``pip install -e '.[dev]'`` and a Chromium. Names on the command line
choose among the pictures; a new one is a function in ``PICTURES``: it gets the browser and a
project whose batch has ended, and writes its files.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ViewportSize, sync_playwright

from nimbus_tasks.core.errors import ProcessorError

REPOSITORY = Path(__file__).parents[1]
PICTURES_FOLDER = REPOSITORY / "docs" / "pictures"
#: GitHub shows a README's pictures some 900 pixels wide.
VIEWPORT = ViewportSize(width=1100, height=1240)
MOST_BYTES = 150_000


def now_and_then_refused(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """A processor like one that asks a model: slow, and refused now and then."""
    path = page["source_path"]
    chance = random.Random(path)
    progress("asking the model", 30)
    time.sleep(chance.lognormvariate(-1.2, 0.6))
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
    invoke(project, "nimbus.batch.report", "--format=html")
    (path,) = (project / ".nimbus" / "reports").glob("*.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport=VIEWPORT)
        page.goto(path.as_uri())
        page.locator("#all").wait_for()
        save(page.screenshot(), f"report-{scheme}.png")
        page.close()


PICTURES: dict[str, Callable[[Browser, Path], None]] = {"report": report_pictures}


def sample_run(folder: Path) -> Path:
    """A copy of the sample project in which all its pages have been worked on."""
    project = folder / "sample-site"
    shutil.copytree(REPOSITORY / ".nimbus" / "maps", project / ".nimbus" / "maps")
    shutil.copy(REPOSITORY / "tasks.py", project)
    invoke(
        project,
        *("nimbus.upload", "nimbus.worker", "--processor=pictures:now_and_then_refused"),
        *("--concurrency=4", "--max-attempts=2"),
    )
    return project


def invoke(project: Path, *arguments: str) -> None:
    """Run ``invoke`` in the project, with this file to take the processor from."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "docs")])
    subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )


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
        project = sample_run(Path(folder))
        for name in names or PICTURES:
            PICTURES[name](browser, project)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
