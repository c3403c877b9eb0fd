"""A disk of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.places import Disk, a_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A few megabytes, mounted for the test."""
    with a_disk(tmp_path / "disk") as made:
        yield made
