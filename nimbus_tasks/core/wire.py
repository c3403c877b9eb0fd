"""JSON as the records hold it, and reading fields that anybody may have written."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, NoReturn

from nimbus_tasks.kv.store import Entry


class UnreadableRecordError(ValueError):
    """A stored value that is no JSON object: somebody else wrote it, or it is damaged."""


#: One each for all records: ``json.dumps`` with options, and ``json.loads`` with hooks, make one
#: anew at every call, which costs as much as the record.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dump_json(value: object) -> str:
    """JSON as the records hold it: compact, no NaN, text as it is."""
    return _ENCODER.encode(value)


#: Whole numbers beyond it are not exact in JavaScript, nor in a float.
MAX_NUMBER = 2**53


class NoJsonError(ValueError):
    """Text that Python may read and JSON does not know, or no store can hold; says why."""


def strict_loads(text: str) -> object:
    """What JSON ``text`` holds. Raises :class:`NoJsonError`, also for NaN, for numbers beyond a
    float or of thousands of digits, for half surrogate pairs and for nesting without end."""
    try:
        value: object = _DECODER.decode(text)
        if "\\" in text and _SURROGATE.search(text):
            # Half a pair passes the parser; writing it out as UTF-8 finds it.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NoJsonError(f"is no JSON: {error.msg} ({where})") from error
    except RecursionError:
        raise NoJsonError("is nested too deeply") from None
    except UnicodeEncodeError:
        raise NoJsonError("holds half of a surrogate pair, which is no text") from None
    except NoJsonError:
        raise
    except ValueError:  # Python's own limit on the digits of an integer
        raise NoJsonError("holds a number of thousands of digits") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise NoJsonError(f"holds {name}, which is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise NoJsonError(f"holds the number {digits[:20]}, which is too large")
    return number


_SURROGATE = re.compile(r"\\u[dD]")
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def load_object(entry: Entry) -> dict[str, Any]:
    """The JSON object that an entry holds. Raises :class:`UnreadableRecordError`."""
    try:
        value = strict_loads(entry.value)
    except NoJsonError as error:
        raise UnreadableRecordError(f"{entry.key} {error}") from error
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


def time_field(value: object) -> str | None:
    """A time as text, or ``None``; longer texts are no times."""
    return value if isinstance(value, str) and len(value) <= 40 else None


def number_field(value: object) -> float | None:
    """A finite number that a float can hold, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -MAX_NUMBER < value < MAX_NUMBER else None


def count_field(value: object) -> int | None:
    """A whole number from 0 that JavaScript can hold too, or ``None``."""
    number = number_field(value)
    return int(number) if number is not None and number >= 0 else None
