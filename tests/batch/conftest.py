"""The batch of the tests that need no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import upload


@pytest.fixture
def batch(project: Project, store: Store, maps: Path) -> str:
    """A batch of ten pages that wait."""
    return str(upload(project, store, maps).batch_id)
