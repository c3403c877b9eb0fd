"""JSON as the records hold it, and fields that anybody may have written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.wire import (
    UnreadableRecordError,
    clip_bytes,
    count_field,
    dump_json,
    load_object,
    mapping_field,
    number_field,
    present,
    text_field,
)
from nimbus_tasks.kv.store import Entry

PROPERTY = settings(derandomize=True, deadline=None, max_examples=200)
#: Text that is short, long, escaped, or outside the basic plane.
TEXTS = st.builds(
    lambda unit, times: unit * times,
    st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", "\x00", "é", "💥", "\u2028", "a"]),
    st.sampled_from([0, 1, 2, 10, 100, 1000]),
)
#: The ellipsis, escaped and quoted: nothing shorter can be clipped to.
SHORTEST = len(json.dumps("…"))


def size(text: str) -> int:
    """The bytes that a text takes serialised."""
    return len(json.dumps(text))


# --- clipping ---


@PROPERTY
@example("💥" * 100, 20)
@example('"' * 100, SHORTEST)
@example("a" * 100, 102)
@example("a" * 100, 101)
@given(TEXTS, st.integers(SHORTEST, 400))
def test_a_clipped_text_fits_and_loses_no_more_than_it_must(text: str, limit: int) -> None:
    clipped = clip_bytes(text, limit)

    assert size(clipped) <= limit
    if size(text) <= limit:
        assert clipped == text
    else:
        kept = clipped.removesuffix("…")
        assert text.startswith(kept)
        assert clipped == kept + "…"
        assert size(text[: len(kept) + 1] + "…") > limit


def test_a_text_of_megabytes_is_clipped_too() -> None:
    assert size(clip_bytes("é" * 3_000_000, 220)) <= 220


def test_half_a_surrogate_pair_is_clipped_like_any_character() -> None:
    assert size(clip_bytes("\ud83d" * 100, 50)) <= 50


# --- JSON ---


def test_json_is_compact_and_text_stays_as_it_is() -> None:
    assert dump_json({"a": [1, "é😀"], "b": None}) == '{"a":[1,"é😀"],"b":null}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_json_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"a": value})


def test_an_object_is_read() -> None:
    assert load_object(Entry("k", ' {"a": {"b": [1]}}\n')) == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "{",
        '{"a":1}}',
        "nothing",
        "null",
        "true",
        "5",
        '"text"',
        "[]",
        '[{"a":1}]',
        "\x00",
        "{'a': 1}",
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"a":' + "9" * 5000 + "}",
    ],
    ids=lambda value: value[:12],
)
def test_a_value_that_is_no_json_object_is_unreadable_and_its_key_is_named(value: str) -> None:
    with pytest.raises(UnreadableRecordError, match="status:proj:page_1"):
        load_object(Entry("status:proj:page_1", value))


# --- fields ---


def test_only_what_is_there_is_present() -> None:
    assert present(a=1, b=None, c=0, d="", e=False, f={}) == {
        "a": 1,
        "c": 0,
        "d": "",
        "e": False,
        "f": {},
    }


@pytest.mark.parametrize("value", [None, 5, "text", ["a"], True])
def test_what_is_no_object_is_an_empty_one(value: object) -> None:
    assert mapping_field(value) == {}


def test_an_object_is_itself() -> None:
    assert mapping_field({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("value", [None, 5, {}, ["a"], True, b"bytes"])
def test_what_is_no_text_is_absent(value: object) -> None:
    assert text_field(value) is None


def test_an_empty_text_is_a_text() -> None:
    assert text_field("") == ""


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (-1.5, -1.5),
        (3, 3),
        (None, None),
        (True, None),
        ("3", None),
        ([3], None),
        ({}, None),
        (float("nan"), None),
    ],
)
def test_a_number_is_a_number_and_nothing_else_is(value: object, number: float | None) -> None:
    assert number_field(value) == number


@pytest.mark.parametrize("text", ["1e999", "-1e999", "Infinity"])
def test_a_number_that_json_cannot_hold_is_absent(text: str) -> None:
    assert number_field(json.loads(text)) is None


def test_a_number_that_no_mean_can_be_taken_of_is_absent() -> None:
    assert number_field(10**400) is None


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (7, 7),
        (7.0, 7),
        (2**53 - 1, 2**53 - 1),
        (-1, None),
        (2**53, None),
        (10**400, None),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        ("7", None),
        (None, None),
    ],
)
def test_a_count_is_a_whole_number_from_zero_that_javascript_can_hold(
    value: object, count: int | None
) -> None:
    found = count_field(value)

    assert found == count
    assert found is None or type(found) is int


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # half a surrogate pair is no text
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@PROPERTY
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_what_is_written_is_read_as_the_same(value: dict[str, Any]) -> None:
    assert load_object(Entry("k", dump_json(value))) == value
