"""A served dashboard of a project with a batch in which some pages have failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.dashboard.served import Served, served
from tests.factories import failing, upload, work


@pytest.fixture
def batch(project: Project, store: Store, maps: Path) -> str:
    """A batch of ten pages: seven done, two failed as broken, one as refused."""
    batch_id = str(upload(project, store, maps).batch_id)
    broken = failing("dist/page-001.html", "dist/page-002.html")
    refused = failing("dist/page-003.html", code="refused")

    def process(page: Any, progress: Any) -> Any:
        is_refused = page["source_path"].endswith("003.html")
        return (refused if is_refused else broken)(page, progress)

    work(project, store, process)
    return batch_id


@pytest.fixture
def dashboard(project: Project) -> Iterator[Served]:
    """The project's dashboard, served."""
    with served(project) as one:
        yield one
