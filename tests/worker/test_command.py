"""The task ``nimbus.worker``: what it says of its own call."""

from __future__ import annotations

from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context

from nimbus_tasks.ui.console import Console
from nimbus_tasks.worker import to_type_again
from nimbus_tasks.worker.display import WorkerDisplay


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
        ({}, {"command": "printf '\n'"}, ["--command=…"]),
        ({}, {"command": "sed 's/a  b/c/'"}, ["--command=…"]),
        ({}, {"command": "ask --token canary-1234"}, ["--command=…"]),
    ],
)  # fmt: skip
def test_what_is_not_configured_is_to_be_typed_again(
    configured: dict[str, Any],
    given: dict[str, str | None],
    again: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What holds a secret, or would look otherwise on the line, is for the person to fill in."""
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "canary-1234")
    c = Context(Config({"nimbus": {"worker": configured}}))

    assert to_type_again(c, given) == again


def test_a_worker_that_has_nothing_to_do_tells_nothing_again_and_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = iter(range(0, 1000, 60))
    display = WorkerDisplay(Console(), clock=lambda: next(seconds))

    for _ in range(5):
        display.pages_ended([])

    assert capsys.readouterr() == ("", "")
