"""A listing's metadata, checked by columns: what is said of a thousand pages is said of each."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nimbus_tasks.core.keys import are_ids, is_id
from nimbus_tasks.core.small_forms import small_form, small_forms

SOUND = {
    "status": "done",
    "batch_id": "batch_a",
    "updated": "2026-11-24T08:13:02.123456Z",
    "attempts": 1,
    "path": "dist/index.html",
    "duration_ms": 12,
    "confidence": 0.5,
}
figures = (
    st.integers(-3, 3)
    | st.sampled_from([2**53, 10**400, 1.5])
    | st.floats(allow_nan=True, allow_infinity=True)
)
anything = st.none() | st.booleans() | figures | st.text(max_size=50) | st.lists(st.integers())
wrong_ones = st.dictionaries(
    st.sampled_from([*SOUND, "progress", "priority", "superseded_by", "completed", "other"]),
    anything
    | st.sampled_from(["2026-01-01", "1999-01-01", "20" + "0" * 40, "20\x9b", "failed", "b" * 129]),
    max_size=3,
)


@given(st.lists(st.none() | wrong_ones, max_size=6))
def test_columns_say_what_each_page_says(changes: list[dict[str, Any] | None]) -> None:
    listed = [None if change is None else {**SOUND, **change} for change in changes]
    alone = [None if metadata is None else small_form(metadata) for metadata in listed]
    forms, columns = small_forms(listed)
    assert forms == alone
    rows = [
        dict(zip(c, row, strict=True)) for c in columns for row in zip(*c.values(), strict=True)
    ]
    assert len(rows) == sum(form is not None for form in alone)
    assert all(row in alone for row in rows)
    assert all(form in rows for form in alone if form is not None)


def test_sound_metadata_are_not_copied() -> None:
    listed = [{**SOUND, "attempts": number} for number in range(5)]
    assert all(form is one for form, one in zip(small_forms(listed)[0], listed, strict=True))


def test_a_nan_does_not_pass_in_the_company_of_others() -> None:
    for at in range(4):
        listed: list[dict[str, Any]] = [dict(SOUND) for _ in range(4)]
        listed[at]["confidence"] = float("nan")
        forms, _ = small_forms(listed)
        assert [form is not None and "confidence" in form for form in forms] == [
            number != at for number in range(4)
        ]


@given(st.lists(st.text(alphabet="ab-_:é\n", max_size=4) | st.just("a" * 129)))
def test_ids_are_ids_together_where_each_is_one(texts: list[str]) -> None:
    assert are_ids(texts) == all(map(is_id, texts))
