"""Ids from outside, and the keys that they stand in."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core import keys
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.kv.store import MAX_KEY_BYTES

PROPERTY = settings(derandomize=True, deadline=None, max_examples=200)
UTC = timezone.utc

HOSTILE = [
    "",
    " ",
    "a b",
    "a" * 129,
    "a" * 500,
    "../../etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a:b",
    ":",
    "a\n",
    "\na",
    "a\nb",
    "a\r",
    "a\x00",
    "\x1b[31mred",
    "a\u202eb",
    "a\u200b",
    "١٢٣",  # digits to str.isdigit() and to \d
    "²",
    "é",
    "\u212a",  # the Kelvin sign, whose lower case is k
    "ｂａｔｃｈ",
    "batch_😀",
    "%2e%2e",
    "*",
    "a,b",
    "$(id)",
]
PRIORITIES = st.integers(keys.LOWEST_PRIORITY, keys.HIGHEST_PRIORITY)
MOMENTS = st.datetimes(  # bounds are naive: hypothesis adds the zone
    min_value=datetime(2020, 1, 1),
    max_value=datetime(2099, 1, 1),
    timezones=st.just(UTC),
)
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)


# --- what is an id ---


@pytest.mark.parametrize("text", HOSTILE)
def test_what_may_not_stand_in_a_key_is_no_id(text: str) -> None:
    assert not keys.is_id(text)


@pytest.mark.parametrize("value", [None, 5, 1.5, True, b"abc", ["a"], {"a": 1}])
def test_only_a_text_is_an_id(value: object) -> None:
    assert not keys.is_id(value)


@pytest.mark.parametrize(
    "text",
    ["a", "-", "_", "0", "batch_20240902_134500", "page_0123456789ab", "My-Site_2", "a" * 128],
)
def test_letters_digits_underscore_and_dash_make_an_id(text: str) -> None:
    assert keys.is_id(text)
    assert keys.check_id(text, "batch") == text


@PROPERTY
@given(st.one_of(st.text(max_size=10), IDS))
def test_whatever_is_an_id_stays_one_part_of_a_key(text: str) -> None:
    if keys.is_id(text):
        assert text.isascii()
        assert keys.page_key("proj", text).split(":") == ["page", "proj", text]
        assert keys.last_part(keys.superseded_key("proj", "batch", text)) == text
    else:
        assert re.search(r"[^A-Za-z0-9_-]", text) or not 1 <= len(text) <= 128


@pytest.mark.parametrize("text", HOSTILE)
def test_a_bad_id_is_refused_as_bad_input_on_one_short_line_that_a_terminal_can_show(
    text: str,
) -> None:
    with pytest.raises(UsageError) as refusal:
        keys.check_id(text, "batch")

    message = refusal.value.message
    assert refusal.value.exit_code == 2
    assert "batch" in message
    assert message.isprintable()
    assert len(message) < 200
    assert refusal.value.advice is not None
    assert "128" in refusal.value.advice


# --- new ids ---


def test_a_project_id_is_proj_and_twelve_hex_digits_and_never_the_same() -> None:
    made = {keys.new_project_id() for _ in range(50)}

    assert len(made) == 50
    assert all(re.fullmatch(r"proj_[0-9a-f]{12}", project_id) for project_id in made)


def test_a_batch_id_is_the_second_in_which_it_was_made() -> None:
    moment = datetime(2024, 9, 2, 13, 45, 0, 999_999, tzinfo=UTC)

    assert keys.new_batch_id(moment) == "batch_20240902_134500"


def test_a_second_batch_in_one_second_gets_a_number() -> None:
    moment = datetime(2024, 9, 2, 13, 45, tzinfo=UTC)
    made = [keys.new_batch_id(moment, taken) for taken in range(3)]

    assert made == ["batch_20240902_134500", "batch_20240902_134500_2", "batch_20240902_134500_3"]
    assert all(map(keys.is_id, made))


def test_a_batch_id_is_in_utc_wherever_the_moment_was_taken() -> None:
    moment = datetime(2024, 9, 2, 15, 45, tzinfo=timezone(timedelta(hours=2)))

    assert keys.new_batch_id(moment) == "batch_20240902_134500"


def test_a_page_id_is_page_and_twelve_hex_digits_of_md5_over_project_and_path() -> None:
    # printf 'proj_0123456789ab:dist/index.html' | md5sum
    page_id = keys.page_id_for("proj_0123456789ab", "dist/index.html")

    assert page_id == "page_a774f5c1a0b5"
    assert keys.is_id(page_id)


def test_a_page_id_depends_on_project_and_path() -> None:
    made = {
        keys.page_id_for(project, path)
        for project in ("proj_a", "proj_b")
        for path in ("index.html", "Index.html", "index.html ", "ünïcödé/😀.html", "")
    }

    assert len(made) == 10


# --- keys ---


def test_the_keys_are_those_of_the_wire_contract() -> None:
    assert keys.page_key("proj", "page_1") == "page:proj:page_1"
    assert keys.status_key("proj", "page_1") == "status:proj:page_1"
    assert keys.batch_key("proj", "batch_1") == "batch:proj:batch_1"
    assert keys.logs_key("proj", "page_1") == "logs:proj:page_1"
    assert keys.queue_key("proj", "page_1", 5, "2026-11-24T08:13:02.123456Z") == (
        "queue:proj:05:20261124081302123456:page_1"
    )


def test_every_key_begins_with_its_prefix_and_ends_with_its_id() -> None:
    for prefix, key in (
        (keys.page_prefix("proj"), keys.page_key("proj", "x")),
        (keys.status_prefix("proj"), keys.status_key("proj", "x")),
        (keys.logs_prefix("proj"), keys.logs_key("proj", "x")),
        (keys.batch_prefix("proj"), keys.batch_key("proj", "x")),
        (keys.superseded_prefix("proj", "batch"), keys.superseded_key("proj", "batch", "x")),
        (keys.queue_prefix("proj"), keys.queue_key("proj", "x", 5, "2026-11-24T08:13:02Z")),
    ):
        assert key.startswith(prefix)
        assert keys.last_part(key) == "x"


def test_no_project_and_no_batch_sees_the_keys_of_one_whose_id_begins_alike() -> None:
    assert not keys.status_key("proj_12", "x").startswith(keys.status_prefix("proj_1"))
    assert not keys.superseded_key("proj", "batch_1_2", "x").startswith(
        keys.superseded_prefix("proj", "batch_1")
    )


def test_the_longest_ids_fit_into_a_key() -> None:
    longest = "a" * keys.MAX_ID_LENGTH
    moment = to_iso(datetime(2026, 11, 24, tzinfo=UTC))

    for key in (
        keys.superseded_key(longest, longest, longest),
        keys.queue_key(longest, longest, 10, moment),
        keys.status_key(longest, longest),
    ):
        assert len(key.encode()) <= MAX_KEY_BYTES


# --- the order of the queue ---


@PROPERTY
@given(st.lists(st.tuples(PRIORITIES, MOMENTS), min_size=2, max_size=8))
def test_queue_keys_sort_by_priority_and_then_by_age(items: list[tuple[int, datetime]]) -> None:
    made = [
        (keys.queue_key("proj", f"page_{number:03d}", priority, to_iso(moment)), priority, moment)
        for number, (priority, moment) in enumerate(items)
    ]

    in_key_order = [(-priority, moment) for _, priority, moment in sorted(made)]

    assert in_key_order == sorted(in_key_order)


@PROPERTY
@given(PRIORITIES, MOMENTS, st.timedeltas(timedelta(milliseconds=1), timedelta(days=900)))
def test_items_that_javascript_queued_sort_by_age_among_ours(
    priority: int, moment: datetime, later: timedelta
) -> None:
    def javascript(when: datetime) -> str:
        return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"

    ours, theirs = to_iso(moment), javascript(moment + later)
    if javascript(moment) < theirs:
        assert keys.queue_key("proj", "z", priority, ours) < keys.queue_key(
            "proj", "a", priority, theirs
        )
    assert keys.queue_key("proj", "z", priority, javascript(moment)) < keys.queue_key(
        "proj", "a", priority, to_iso(moment + later + timedelta(milliseconds=1))
    )


def test_a_retry_comes_before_every_new_page_however_old() -> None:
    retry = keys.queue_key("proj", "z", 8, "2026-11-24T00:00:00.000000Z")
    new = keys.queue_key("proj", "a", 5, "2020-01-01T00:00:00.000000Z")

    assert retry < new


def test_of_two_items_of_one_moment_the_order_is_that_of_their_ids() -> None:
    moment = "2026-11-24T00:00:00.000000Z"

    assert keys.queue_key("proj", "a", 5, moment) < keys.queue_key("proj", "b", 5, moment)


@pytest.mark.parametrize("queued_at", ["", "soon", ":../../:", "١٢٣", "\n"])
def test_a_time_that_is_none_adds_no_part_to_a_key(queued_at: str) -> None:
    assert keys.queue_key("proj", "page_1", 5, queued_at) == "queue:proj:05::page_1"
