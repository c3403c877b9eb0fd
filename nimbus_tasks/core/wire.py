"""JSON as the records hold it, and reading fields that anybody may have written."""

from __future__ import annotations

import json
from typing import Any

from nimbus_tasks.kv.store import Entry


class UnreadableRecordError(ValueError):
    """A stored value that is no JSON object: somebody else wrote it, or it is damaged."""


def dump_json(value: object) -> str:
    """JSON as the records hold it: compact, no NaN, text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def load_object(entry: Entry) -> dict[str, Any]:
    """The JSON object that an entry holds. Raises :class:`UnreadableRecordError`."""
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError) as error:
        raise UnreadableRecordError(f"{entry.key} holds no JSON") from error
    if not isinstance(value, dict):
        raise UnreadableRecordError(f"{entry.key} holds no JSON object")
    return value


def clip_bytes(text: str, limit: int) -> str:
    """``text`` shortened so that, serialised as JSON, it takes at most ``limit`` bytes."""
    if len(json.dumps(text)) <= limit:
        return text
    low, high = 0, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        if len(json.dumps(text[:middle] + "…")) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…"


def present(**fields: Any) -> dict[str, Any]:
    """Those of the fields that are there."""
    return {name: value for name, value in fields.items() if value is not None}


def mapping_field(value: object) -> dict[str, Any]:
    """An object, or an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def text_field(value: object) -> str | None:
    """A text, or ``None``."""
    return value if isinstance(value, str) else None


def number_field(value: object) -> float | None:
    """A number, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return value


def count_field(value: object) -> int | None:
    """A whole number from 0 that JavaScript can hold too, or ``None``."""
    number = number_field(value)
    return int(number) if number is not None and 0 <= number < 2**53 else None
