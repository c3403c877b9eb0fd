"""What the tests share: a project in an empty folder, its store, and content maps to fill it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from nimbus_tasks.core.project import Project, new_project, save_project
from nimbus_tasks.kv.store import Store
from tests.factories import write_maps

# Before anybody imports it: its asserts are to say as much as those of a test module.
pytest.register_assert_rewrite("tests.kv.store_suite")

# In CI the same examples every time: a new one that fails is to be found where somebody can look.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outer environment decides nothing of what a test sees."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


#: Where the commands that tests start count for coverage, which doubles the time that a command
#: takes to start: between them they come to most of what a command does.
COUNTED = (
    *("tests/test_cli.py", "tests/test_main_job.py", "tests/test_cloudflare_setup.py"),
    *("tests/cloud/", "tests/fleet/", "tests/processors/", "tests/dashboard/", "tests/terminal/"),
)


@pytest.fixture(autouse=True)
def uncounted_commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere they start in half the time."""
    if not request.node.nodeid.startswith(COUNTED):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that has a configuration and no store yet."""
    made = new_project(tmp_path, name="test", project_id="proj_0123456789ab")
    save_project(made)
    return made


@pytest.fixture
def store(project: Project) -> Iterator[Store]:
    """The project's embedded store, empty and open."""
    with project.open_store(create=True) as opened:
        yield opened


@pytest.fixture
def maps(project: Project) -> Path:
    """The project's folder with ten usable maps."""
    folder = project.folder / "maps"
    write_maps(folder, 10)
    return folder
