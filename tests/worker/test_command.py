"""The task ``nimbus.worker``: what it says of its own call."""

from __future__ import annotations

from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context

from nimbus_tasks.worker import to_type_again


@pytest.mark.parametrize(
    ("configured", "given", "again"),
    [
        ({}, {"processor": None, "concurrency": None}, []),
        ({}, {"processor": "a:b", "max_attempts": "3"}, ["--processor=a:b", "--max-attempts=3"]),
        ({}, {"command": "node a.js"}, ["--command='node a.js'"]),
        ({"processor": "a:b", "concurrency": 8}, {"processor": "a:b", "concurrency": "8"}, []),
        ({"processor": "ai:one"}, {"processor": "audit"}, ["--processor=audit"]),
        (
            {"processor": "audit", "command": "node a.js"},
            {"processor": "audit"},
            ["--processor=audit"],
        ),
        ({}, {"command": "printf '\n'"}, []),
    ],
)  # fmt: skip
def test_what_is_not_configured_is_to_be_typed_again(
    configured: dict[str, Any], given: dict[str, str | None], again: list[str]
) -> None:
    c = Context(Config({"nimbus": {"worker": configured}}))

    assert to_type_again(c, given) == again
