"""The encoder beside the one of the standard library, with and without its part in C."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_tasks.kv.encoding import json_encoder

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=64) | TEXTS
FINITE = SCALARS.filter(lambda value: value not in (float("inf"), -float("inf")))
ANY_JSON = st.recursive(
    FINITE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(ANY_JSON, st.booleans())
def test_it_writes_what_json_dumps_writes(value: object, ensure_ascii: bool) -> None:
    encode = json_encoder(ensure_ascii=ensure_ascii)

    expected = json.dumps(value, ensure_ascii=ensure_ascii, separators=(",", ":"), allow_nan=False)
    assert encode(value) == expected
    assert encode(value) == expected  # it is used again and again


def a_loop() -> list[Any]:
    """A list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        ([1, -float("inf")], ValueError),
        ({"a": object()}, TypeError),
        ({(1, 2): 3}, TypeError),
        (a_loop(), RecursionError),
    ],
)
def test_what_is_no_json_is_refused_and_the_next_is_written(
    value: object, error: type[Exception]
) -> None:
    encode = json_encoder(ensure_ascii=False)

    with pytest.raises(error):
        encode(value)

    assert encode({"a": [1, "é"]}) == '{"a":[1,"é"]}'


def changed_signature(*arguments: object) -> Callable[..., Any]:
    """The function as another version of Python may have it."""
    raise TypeError("takes other arguments")


@pytest.mark.parametrize(
    ("name", "other"),
    [("c_make_encoder", None), ("encode_basestring", None), ("c_make_encoder", changed_signature)],
)
def test_where_the_part_in_c_is_missing_or_another_the_public_encoder_does(
    name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(json.encoder, name, other)
        encode = json_encoder(ensure_ascii=False)

    assert encode({"a": [1.5, "é"]}) == '{"a":[1.5,"é"]}'
    assert getattr(encode, "__func__", None) is json.JSONEncoder.encode
