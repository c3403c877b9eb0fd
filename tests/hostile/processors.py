"""A processor that says and answers what :data:`DRAW` draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from nimbus_tasks.core.errors import ProcessorError
from tests.hostile import draws

DRAW = random.Random(0)


def hostile(page: Mapping[str, Any], progress: Callable[..., None]) -> Any:
    """Good to one page in two, so that it is seen that these are done."""
    number = int(page["source_path"][-8:-5])
    rng = random.Random(f"{DRAW.random()} {number}")
    progress(draws.text(rng), draws.value(rng), draws.text(rng), data=draws.value(rng))
    if number % 2:
        return {"changes": 1, "confidence": 0.5}
    if rng.random() < 0.3:
        raise ProcessorError(draws.text(rng), code=draws.text(rng))
    if rng.random() < 0.3:
        raise type("Odd\x1b[35mError", (Exception,), {})(draws.text(rng))
    return (
        draws.value(rng)
        if rng.random() < 0.3
        else {
            "changes": draws.value(rng),
            "confidence": draws.value(rng),
            "optimization": draws.value(rng),
        }
    )
