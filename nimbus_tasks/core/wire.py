"""JSON as the records hold it, and reading fields that anybody may have written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isfinite
from typing import Any, NoReturn

from nimbus_tasks.core.keys import HIGHEST_PRIORITY, LOWEST_PRIORITY, is_id
from nimbus_tasks.kv.encoding import json_encoder
from nimbus_tasks.kv.store import Entry


class UnreadableRecordError(ValueError):
    """A stored value that is no JSON object: somebody else wrote it, or it is damaged."""


#: JSON as the records hold it: compact, no NaN, text as it is.
dump_json = json_encoder(ensure_ascii=False)


#: Whole numbers beyond it are not exact in JavaScript, nor in a float.
MAX_NUMBER = 2**53
#: What is read has to be written again, from deeper within a program, and by the JSON modules of
#: others, that stop at some hundreds.
MAX_NESTING = 200


class NoJsonError(ValueError):
    """Text that Python may read and JSON does not know, or no store can hold; says why."""


#: Makes an object of the JSON out of its names and values.
PairsHook = Callable[[list[tuple[str, Any]]], dict[str, Any]]


def strict_loads(text: str, hook: PairsHook | None = None) -> object:
    """What JSON ``text`` holds, its objects made by ``hook`` if there is one.

    Raises :class:`NoJsonError`, also for NaN, for numbers beyond a float or of thousands of digits,
    for half surrogate pairs and for nesting beyond :data:`MAX_NESTING`.
    """
    try:
        decoder = _DECODER if hook is None else _decoder(hook)
        value: object = decoder.decode(text)
        if "\\" in text and _SURROGATE.search(text):
            # Half a pair passes the parser; writing it out as UTF-8 finds it.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NoJsonError(f"is no JSON: {error.msg} ({where})") from error
    except RecursionError:
        raise NoJsonError(_TOO_DEEP) from None
    except UnicodeEncodeError:
        raise NoJsonError("holds half of a surrogate pair, which is no text") from None
    except NoJsonError:
        raise
    except ValueError:  # Python's own limit on the digits of an integer
        raise NoJsonError("holds a number of thousands of digits") from None
    if text.count("{") + text.count("[") > MAX_NESTING and _is_nested_too_deeply(value):
        raise NoJsonError(_TOO_DEEP)
    return value


_TOO_DEEP = "is nested too deeply"


def _is_nested_too_deeply(value: object) -> bool:
    """Level by level: who calls itself for each meets the limit that is to be kept away from."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise NoJsonError(f"holds {name}, which is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise NoJsonError(f"holds the number {digits[:20]}, which is too large")
    return number


_SURROGATE = re.compile(r"\\u[dD]")


def _decoder(hook: PairsHook | None = None) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=hook
    )


_DECODER = _decoder()


def load_object(entry: Entry, hook: PairsHook | None = None) -> dict[str, Any]:
    """The JSON object that an entry holds; ``hook`` makes the objects in it out of their pairs.
    Raises :class:`UnreadableRecordError`."""
    try:
        value = strict_loads(entry.value, hook)
    except NoJsonError as error:
        raise UnreadableRecordError(f"{entry.key} {error}") from error
    if not isinstance(value, dict):
        raise UnreadableRecordError(f"{entry.key} holds no JSON object")
    return value


def clip_bytes(text: str, limit: int) -> str:
    """``text`` shortened so that, serialised as JSON, it takes at most ``limit`` bytes."""
    # What a character takes at the most: two of a plain text, twelve of any other.
    most = 2 if text.isascii() and text.isprintable() else 12
    if most * len(text) + 2 <= limit or len(json.dumps(text)) <= limit:
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
    """A time as text, or ``None``: times are compared as texts, and are of this century."""
    if not isinstance(value, str) or value[:2] != "20" or len(value) > 40:
        return None
    return value if value.isascii() and value.isprintable() else None


def number_field(value: object) -> float | None:
    """A finite number that a float can hold, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -MAX_NUMBER < value < MAX_NUMBER else None


def count_field(value: object) -> int | None:
    """A whole number from 0 that JavaScript can hold too, or ``None``."""
    number = number_field(value)
    return int(number) if number is not None and number >= 0 else None


def id_field(value: object) -> str | None:
    """An id, or ``None``."""
    return value if isinstance(value, str) and is_id(value) else None


def priority_field(value: object) -> int | None:
    """A priority from 1 to 10, or ``None``."""
    number = count_field(value)
    return number if number and LOWEST_PRIORITY <= number <= HIGHEST_PRIORITY else None


def cost_field(value: object) -> float | None:
    """A sum of money from 0, or ``None``."""
    number = number_field(value)
    return number if number is not None and number >= 0 else None
