"""Processors of the benchmark: as little work as there can be, and a wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

WAIT_SECONDS = 0.02


def trivial(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """One change, at once."""
    return {"changes": 1, "confidence": 0.5}


def one_in_a_hundred_fails(
    page: Mapping[str, Any], progress: Callable[..., None]
) -> dict[str, Any]:
    """As the trivial one, where the page id has it go well."""
    if int(page["page_id"][-4:], 16) % 100 == 0:
        raise TimeoutError("the model did not answer within 30 seconds")
    return {"changes": 1, "confidence": 0.5}


def waiting(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """As long as a quick request takes."""
    time.sleep(WAIT_SECONDS)
    return {"changes": 1, "confidence": 0.5}
